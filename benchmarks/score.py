"""How close scoring a recorded run comes to its limit: reading the same files.

The limit opens each shard in turn with h5py and reads features and logits, checksums included, in
one thread, as a script of a few lines would. Both sides run in turn, over the same files. The run
is drawn, and removed afterwards, where none is given.

With ``--sweeps`` it times the 22 settings of ``ablate p`` and ``ablate temperature``, all from one
read, with and without their intervals.

python benchmarks/score.py --rows 1000000 -o benchmarks/results/score-cpu.csv
python benchmarks/score.py --rows 50000 --sweeps -o benchmarks/results/sweeps-cpu.csv
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import records
import torch
from timing import device_name, fraction, interleaved

from gradscore.ablation import ablate, ablation_specs
from gradscore.closed_form import last_layer_score
from gradscore.methods import ScoreSpec
from gradscore.recorded import Run
from gradscore.run import HeadInfo, RunInfo, RunStore, SetInfo
from gradscore.scoring import iterate_scores

SHARD_ROWS = 4096
READ_ROWS = 2048


def write_run(path: Path, *, rows: int, features: int, classes: int) -> None:
    """Write a run of random rows, ``4 (features + classes)`` bytes each.

    Half of them are a set ``drawn``, ID, and half a set ``other``, OOD.

    Args:
        path: A directory that holds no run.
        rows: Number of rows.
        features: Features of a row.
        classes: Logits of a row.

    Raises:
        RunError: If there is a run already, or the disk is full.
    """
    draw = np.random.default_rng(0)
    shape = (SHARD_ROWS, features)
    x = np.maximum(draw.standard_normal(shape, np.float32), 0)
    f = 3 * draw.standard_normal((SHARD_ROWS, classes), np.float32)
    head = HeadInfo("fc", ("fc.weight",), "fc.bias", True)
    groups = {"last": ("fc.weight",), "all": ("fc.weight",)}
    info = RunInfo(
        "drawn", None, "a" * 64, {}, "float32", classes, features, (3, 224, 224), head,
        {"fc.weight": classes * features}, groups,
    )  # fmt: skip
    with RunStore.create(path, info) as store:
        for name, role, first, last in (
            ("drawn", "id", 0, rows // 2),
            ("other", "ood", rows // 2, rows),
        ):
            store.add_set(SetInfo(name, role, name, "a" * 64, last - first))
            for start in range(0, last - first, SHARD_ROWS):
                stop = min(start + SHARD_ROWS, last - first)
                n, turn = stop - start, (first + start) // SHARD_ROWS
                # Rolled, so that no two shards are equal; drawing takes most of the time.
                base = {
                    "index": np.arange(start, stop),
                    "path": np.array([f"{name}/{i}" for i in range(start, stop)], dtype=object),
                    "label": np.full(n, -1),
                    "features": np.roll(x, turn, axis=1)[:n],
                    "logits": np.roll(f, turn, axis=1)[:n],
                }
                store.add_shards(name, {"base": base}, (start, stop))


def measure(
    path: Path, *, methods: Iterable[str] = ("gradnorm",), repeats: int = 3, seconds: float = 50.0
) -> dict[str, Any]:
    """Score a run and read it plainly, in turn.

    Args:
        path: A run; all its sets are scored together.
        methods: Names of methods, with their default settings.
        repeats: Most rounds, after one to warm up.
        seconds: No round begins after this much time.

    Returns:
        ``rows, features, classes, methods, score_rows_per_second, read_rows_per_second,
        of_limit`` (reading time over scoring time, median over rounds), ``peak_mb`` of this
        process, all libraries included, and ``device, torch``.
    """
    store = RunStore(path)
    specs = [ScoreSpec(method) for method in methods]
    taken = interleaved(
        {"read": lambda: _read(store), "score": lambda: _score(store, specs)},
        repeats=repeats,
        seconds=seconds,
    )
    rows = sum(entry.recorded() for entry in store.sets.values())
    return {
        "rows": rows,
        "features": store.info.features,
        "classes": store.info.classes,
        "methods": " ".join(spec.method for spec in specs),
        "score_rows_per_second": round(rows / statistics.median(taken["score"])),
        "read_rows_per_second": round(rows / statistics.median(taken["read"])),
        "of_limit": round(fraction(taken["read"], taken["score"]), 3),
        "peak_mb": _peak_mb(),
        "device": device_name("cpu"),
        "torch": torch.__version__,
    }


def measure_sweeps(path: Path) -> Iterator[dict[str, Any]]:
    """Time the sweeps over orders and temperatures, without and with intervals.

    Args:
        path: A run with an ID and an OOD set.

    Yields:
        ``figure`` (what was done), ``rows, features, classes, settings, seconds``, ``peak_mb`` of
        this process so far, and ``device, torch``.
    """
    store = RunStore(path)
    kinds = ["p", "temperature"]
    settings = {spec for kind in kinds for spec in ablation_specs(kind, Run(path))}
    for figure, work in {
        "load libraries": lambda: last_layer_score(torch.ones(1, 1), torch.ones(1, 1)),
        "score": lambda: _score(store, list(settings)),
        "ablate": lambda: ablate(Run(path), kinds, replicates=0),
        "ablate, with intervals": lambda: ablate(Run(path), kinds),
        "read once": lambda: _read(store),
    }.items():
        began = time.perf_counter()
        work()
        yield {
            "figure": figure,
            "rows": sum(entry.recorded() for entry in store.sets.values()),
            "features": store.info.features,
            "classes": store.info.classes,
            "settings": len(settings),
            "seconds": round(time.perf_counter() - began, 2),
            "peak_mb": _peak_mb(),
            "device": device_name("cpu"),
            "torch": torch.__version__,
        }


def _read(store: RunStore) -> None:
    for entry in store.sets.values():
        for shard in entry.passes["base"]:
            read_plainly(store.path / shard.file, ("features", "logits"), READ_ROWS)


def _score(store: RunStore, specs: list[ScoreSpec]) -> None:
    for _ in iterate_scores(store, store.sets, specs):
        pass


def read_plainly(path: Path, fields: Sequence[str], rows: int) -> None:
    """Read datasets of a shard and drop them, as a script of a few lines would, without a check.

    Args:
        path: The shard.
        fields: The datasets.
        rows: How many at once.
    """
    with h5py.File(path, "r", locking=False) as file:
        for start in range(0, len(file[fields[0]]), rows):
            for field in fields:
                file[field][start : start + rows]


def _peak_mb() -> int | None:
    """Return the most memory this process has held, or None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a run, measure, print, and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--method", action="append", dest="methods")
    parser.add_argument("--sweeps", action="store_true", help="time ablate p and temperature")
    parser.add_argument("--run", type=Path, help="measure this run, and leave it")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        run = options.run
        if run is None:
            run = Path(folder, "run")
            sizes = {"features": options.features, "classes": options.classes}
            write_run(run, rows=options.rows, **sizes)
        if options.sweeps:
            rows = list(measure_sweeps(run))
        else:
            rows = [measure(run, methods=options.methods or ("gradnorm",))]
    print(*rows, sep="\n")
    if options.output is not None:
        records.write(options.output, rows)


if __name__ == "__main__":
    main()
