"""A run of many rows: what a shard costs as the run grows, and what reading it takes.

    python benchmarks/scale_run.py --rows 10000000 --features 64 --classes 10 --output FILE.csv

The run is drawn: an ID set with labels of its own logits, an OOD set of smaller features, and a
small set to fit to. Writing is timed a shard, in tenths of the run: seconds a shard (building
and syncing included), and the bytes that the index took beside the shards. `score` by GradNorm and
`evaluate` by every method that the run answers run in processes of their own, whose largest
resident size is told. Beside `score`: reading the same files with h5py, checksums included.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import records
import timing

import gradscore
from gradscore.run import HeadInfo, RunInfo, RunStore, SetInfo

FIT_ROWS = 4096
SLOW = ("lee_alregib", "mahalanobis_stages", "laplace_energy_blocks", "odin")
"""Methods that need passes which the drawn run has not."""


def write(path: Path, rows: int, features: int, classes: int, shard_rows: int) -> list[float]:
    """Write the run; return the seconds of each shard."""
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((classes, features), np.float32) / features**0.5
    head = HeadInfo("fc", ("fc.weight",), "fc.bias", True)
    groups = {"last": ("fc.weight",), "all": ("fc.weight",)}
    info = RunInfo(
        "drawn", None, "a" * 64, {}, "float32", classes, features, (3, 32, 32), head,
        {"fc.weight": classes * features}, groups,
    )  # fmt: skip
    arrays = {"weight": weight, "bias": np.zeros(classes, np.float32)}
    taken: list[float] = []
    with RunStore.create(path, info, arrays) as store:
        for name, role, count, scale in (
            ("fit", "fit", FIT_ROWS, 1.0),
            ("id", "id", rows // 2, 1.0),
            ("ood", "ood", rows - rows // 2, 0.7),
        ):
            store.add_set(SetInfo(name, role, "drawn", "a" * 64, count))
            for start in range(0, count, shard_rows):
                n = min(shard_rows, count - start)
                x = np.maximum(draw.standard_normal((n, features), np.float32), 0) * scale
                f = 4 * x @ weight.T
                base = {
                    "index": np.arange(start, start + n),
                    "path": np.array([f"{name}/{i}" for i in range(start, start + n)], object),
                    "label": f.argmax(axis=1) if role != "ood" else np.full(n, -1),
                    "features": x,
                    "logits": f,
                }
                began = time.perf_counter()
                store.add_shards(name, {"base": base}, (start, start + n))
                taken.append(time.perf_counter() - began)
    return taken


def in_child(work: Any, *arguments: Any) -> tuple[float, float, Any]:
    """Run a function in a process of its own; return seconds, megabytes and its result."""
    receive, send = get_context("spawn").Pipe(duplex=False)
    child = get_context("spawn").Process(target=_measured, args=(send, work, arguments))
    child.start()
    result = receive.recv()
    child.join()
    return result


def _measured(send: Any, work: Any, arguments: tuple) -> None:
    if work is not evaluate:
        work(*arguments, sets=("fit",))  # imports and compilation
    began = time.perf_counter()
    value = work(*arguments)
    seconds = time.perf_counter() - began
    send.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, value))


def score(path: Path, sets: Sequence[str] = ("id", "ood")) -> int:
    """Score sets by GradNorm, block by block; return the rows."""
    from gradscore.methods import make_spec
    from gradscore.scoring import iterate_scores

    return sum(map(len, iterate_scores(RunStore(path), sets, [make_spec("gradnorm")])))


def read_plainly(path: Path, sets: Sequence[str] = ("id", "ood")) -> int:
    """Read features and logits of every shard with h5py; return the rows."""
    rows = 0
    for name in sets:
        for file in sorted((path / name / "base").glob("*.h5")):
            with h5py.File(file) as opened:
                rows += len(opened["logits"][:]) + 0 * len(opened["features"][:])
    return rows


def evaluate(path: Path) -> list[str]:
    """Evaluate by every method; return their names."""
    from gradscore.choices import METHODS
    from gradscore.evaluation import evaluate_run
    from gradscore.methods import make_spec

    names = [name for name in METHODS if name not in SLOW]
    fitted = ("knn", "nnguide", "fdbd", "vim", "react", "laplace_energy", "mahalanobis")
    specs = [make_spec(name, **({"fit": "fit"} if name in fitted else {})) for name in names]
    evaluate_run(path, specs)
    return names


def main() -> None:
    """Write the run, time it in tenths, read it, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--shard-rows", type=int, default=4096)
    parser.add_argument("--skip-evaluate", action="store_true")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gradscore-scale-"))
    try:
        run = folder / "run"
        taken = write(run, chosen.rows, chosen.features, chosen.classes, chosen.shard_rows)
        tenths = [1000 * float(np.median(part)) for part in np.array_split(taken, 10)]
        row: dict[str, Any] = {
            "rows": chosen.rows,
            "features": chosen.features,
            "classes": chosen.classes,
            "shards": len(taken),
            "ms a shard by tenths": " ".join(f"{ms:.1f}" for ms in tenths),
            "index bytes a shard": round((run / "run.json").stat().st_size / len(taken)),
        }
        print(row, flush=True)
        ratios, seconds = [], []
        for _ in range(3):
            plain, _, rows = in_child(read_plainly, run)
            ours, megabytes, same = in_child(score, run)
            assert rows == same
            ratios.append(plain / ours)
            seconds.append(ours)
            print(f"h5py {plain:.1f} s, score {ours:.1f} s, {megabytes:.0f} MB", flush=True)
        row |= {
            "score s": f"{np.median(seconds):.1f}",
            "score / h5py": f"{np.median(ratios):.2f}",
            "spread": f"{min(ratios):.2f} to {max(ratios):.2f}",
            "score MB": round(megabytes),
        }
        if not chosen.skip_evaluate:
            taken_s, megabytes, names = in_child(evaluate, run)
            row |= {
                "evaluate methods": len(names),
                "evaluate s": round(taken_s),
                "evaluate MB": round(megabytes),
            }
        row |= {"device": timing.device_name("cpu"), "cpus": os.cpu_count()}
        row["gradscore"] = gradscore.__version__
        print(row)
        if chosen.output:
            records.append(chosen.output, row)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
