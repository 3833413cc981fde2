"""The module ``GradNorm`` beside the plain forward of the model that it wraps.

python benchmarks/scorer.py -o benchmarks/results/scorer-cpu.csv

Both run in turn on the same batch, without gradients. A ratio of 1.02 is 2% dearer than a forward.
"""

import argparse
import csv
import platform
import statistics
from pathlib import Path

import torch

import gradscore as gs
from gradscore.bench.timing import interleaved


def main() -> None:
    """Measure, print, and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="timm:resnet18")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    model = gs.create_model(options.model, "random").to(options.device)
    scorer = gs.GradNorm(model)
    rows = []
    for batch in (16, 64):
        images = torch.randn(batch, 3, 224, 224, device=options.device)
        with torch.inference_mode():
            taken = interleaved(
                {"forward": lambda x=images: model(x), "scorer": lambda x=images: scorer(x)},
                repeats=51,
                seconds=options.seconds,
                device=options.device,
            )
        ratios = [
            own / plain for own, plain in zip(taken["scorer"], taken["forward"], strict=True)
        ]
        rows.append(
            {
                "model": options.model,
                "batch": batch,
                "ratio": round(statistics.median(ratios), 3),
                "lowest": round(min(ratios), 3),
                "highest": round(max(ratios), 3),
                "rounds": len(ratios),
                "forward_s": round(statistics.median(taken["forward"]), 4),
                "device": f"{platform.machine()}, {torch.get_num_threads()} threads"
                if options.device == "cpu"
                else torch.cuda.get_device_name(),
                "torch": torch.__version__,
            }
        )
        print(rows[-1], flush=True)
    if options.output:
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
