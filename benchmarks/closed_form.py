"""The closed form beside its limits and peers, and its cost against each size.

python benchmarks/closed_form.py -o benchmarks/results/closed-form-cpu.csv
python benchmarks/closed_form.py --sweep -o benchmarks/results/closed-form-cpu-sweep.csv
python benchmarks/closed_form.py --device cuda --dtype bfloat16 -o closed-form-h200.csv
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from gradscore.bench.closed_form import compare, slope, sweep

LARGE = ((1_000_000, 2048, 1000), (50_000, 2048, 21843), (10_000_000, 64, 10))
"""Rows, features and classes that fill a data-centre device."""


def main() -> None:
    """Measure, print and write a CSV, for a sweep a plot beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--sweep", action="store_true", help="cost against each size")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    rows = []
    if options.sweep:
        measured = sweep(device=options.device)
    else:
        shapes = {"shapes": LARGE} if options.device == "cuda" else {}
        measured = compare(
            **shapes,
            dtype=getattr(torch, options.dtype),
            device=options.device,
            peers=not options.no_peers,
        )
    for row in measured:
        rows.append(row)
        print(*row.values(), sep="  ", flush=True)
    if options.output is not None:
        with open(options.output, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if options.sweep:
        plot(rows, options.output and options.output.with_suffix(".png"))


def plot(rows: list[dict[str, Any]], path: Path | None) -> None:
    """Print the fitted slopes, and draw cost against size on logarithmic axes."""
    lines = defaultdict(list)
    for row in rows:
        lines[row["sweep"]].append((row[row["sweep"]], row["us_per_row"] * row["rows"] / 1e6))
    slopes = {name: slope(*zip(*points, strict=True)) for name, points in lines.items()}
    print({name: round(value, 2) for name, value in slopes.items()})
    if path is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot(
        xscale="log",
        yscale="log",
        xlabel="size",
        ylabel="seconds",
        title="Cost of the closed form",
    )
    others = {
        "rows": "512 features, 100 classes",
        "classes": "1,000 rows, 512 features",
        "features": "20,000 rows, 100 classes",
    }
    for (name, points), marker in zip(lines.items(), "os^", strict=True):
        label = f"{name}: slope {slopes[name]:.2f} ({others[name]})"
        axes.plot(*zip(*points, strict=True), marker=marker, label=label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
