"""A run of many rows: what a shard costs as the run grows, and what every command on it takes.

    python benchmarks/scale_run.py --rows 10000000 --features 64 --classes 10 --output FILE.csv

The run is drawn: an ID set with labels of its own logits, an OOD set of smaller features, and a
small set to fit to. Writing is timed a shard, in tenths of the run: milliseconds a shard (building
and syncing included), and the bytes that the index took beside the shards. Then `score` by
GradNorm, `evaluate` by every method that the run answers, `choose`, `calibrate` and `report`, each
in a process of its own: seconds, seconds of processors and largest resident size. Beside `score`:
reading the same files with h5py, checksums included.

`--run DIR` keeps the run, or takes one that was made so; a step that the output has for as many
rows, features and classes is left out. What was stopped is so gone on with. `--without METHOD...`
leaves methods out of `evaluate`: of wide features some take a millisecond a row.
"""

import argparse
import csv
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

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


class Measured(NamedTuple):
    """What a step took, and what it returned."""

    seconds: float
    processors: float
    megabytes: float
    value: Any


def in_child(work: Callable, *arguments: Any) -> Measured:
    """Run a function in a process of its own."""
    receive, send = get_context("spawn").Pipe(duplex=False)
    child = get_context("spawn").Process(target=_measured, args=(send, work, arguments))
    child.start()
    send.close()
    result = receive.recv()
    child.join()
    return result


def _measured(send: Any, work: Callable, arguments: tuple) -> None:
    if work in (score, read_plainly):
        work(*arguments, sets=("fit",))  # imports and compilation
    began, before = time.perf_counter(), time.process_time()
    value = work(*arguments)
    taken = time.perf_counter() - began, time.process_time() - before
    send.send(Measured(*taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, value))


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


def evaluate(path: Path, without: Sequence[str] = ()) -> str:
    """Evaluate by every method that needs nothing but base rows and a set to fit to."""
    from gradscore.choices import METHODS
    from gradscore.evaluation import evaluate_run
    from gradscore.methods import make_spec

    names = [name for name in METHODS if name not in (*SLOW, *without)]
    fitted = ("knn", "nnguide", "fdbd", "vim", "react", "laplace_energy", "mahalanobis")
    specs = [make_spec(name, **({"fit": "fit"} if name in fitted else {})) for name in names]
    rows = evaluate_run(path, specs).rows
    left_out = f", without {' '.join(without)}" if without else ""
    return f"{len(names)} methods{left_out}, {len(rows)} rows"


def choose(path: Path) -> str:
    """Choose a score by the ID set."""
    from gradscore.choosing import choose as choose_score

    choice = choose_score(path)
    return f"{choice.spec.title()} by {choice.by}, of {len(choice.far or choice.near)}"


def calibrate(path: Path) -> str:
    """Calibrate energy, and write the detector's file."""
    from gradscore.detector.calibration import Wanted, calibrate_run
    from gradscore.detector.file import write_detector
    from gradscore.recorded import open_store

    made = calibrate_run(open_store(path), Wanted("energy"))
    file = path.parent / "detector.safetensors"
    write_detector(file, made.info, made.arrays)
    return f"{made.info.threshold.images:,} images, {file.stat().st_size >> 20} MB"


def report(path: Path) -> str:
    """Write the report."""
    from gradscore.reporting import report as write_report

    page = write_report(path, path.parent / "report.html", images=False, method="energy")
    return f"{page.stat().st_size >> 10} kB"


STEPS = {"evaluate": evaluate, "choose": choose, "calibrate": calibrate, "report": report}


def beside_h5py(run: Path) -> dict[str, Any]:
    """Score by GradNorm and read plainly, in turns; return what both took."""
    pairs = []
    for _ in range(3):
        plain, ours = in_child(read_plainly, run), in_child(score, run)
        assert plain.value == ours.value
        pairs.append((plain, ours))
        print(f"h5py {plain.seconds:.1f} s, score {ours.seconds:.1f} s", flush=True)
    ratios = sorted(plain.seconds / ours.seconds for plain, ours in pairs)
    (_, middle) = sorted(pairs, key=lambda pair: pair[1].seconds)[1]
    what = f"{ratios[1]:.2f} of h5py's speed, {ratios[0]:.2f} to {ratios[2]:.2f}"
    return taken_by(middle._replace(value=what))


def taken_by(found: Measured) -> dict[str, Any]:
    """Return a step's figures as columns."""
    return {
        "seconds": round(found.seconds, 1),
        "processor seconds": round(found.processors, 1),
        "peak MB": round(found.megabytes),
        "what": found.value,
    }


def main() -> None:
    """Write the run, or take one that is there, and measure what is not in the output yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--shard-rows", type=int, default=4096)
    parser.add_argument("--run", type=Path, help="where the run is kept")
    parser.add_argument("--steps", nargs="*", choices=["score", *STEPS], default=["score", *STEPS])
    parser.add_argument("--without", nargs="*", default=[], help="methods left out of evaluate")
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    size = {"rows": chosen.rows, "features": chosen.features, "classes": chosen.classes}
    kind = {"device": timing.device_name("cpu"), "gradscore": gradscore.__version__}

    def keep(step: str, figures: dict[str, Any]) -> None:
        row = size | {"step": step} | figures | kind
        print(row, flush=True)
        if chosen.output:
            records.append(chosen.output, row)

    done = set()
    if chosen.output and chosen.output.exists():
        with chosen.output.open() as file:
            same = {key: str(value) for key, value in size.items()}
            done = {row["step"] for row in csv.DictReader(file) if row.items() >= same.items()}
    folder = Path(tempfile.mkdtemp(prefix="gradscore-scale-")) if chosen.run is None else None
    run = chosen.run or folder / "run"
    try:
        if not (run / "run.json").exists():
            began, before = time.perf_counter(), time.process_time()
            taken = write(run, chosen.rows, chosen.features, chosen.classes, chosen.shard_rows)
            total = time.perf_counter() - began, time.process_time() - before
            tenths = [
                1000 * float(np.median(part))
                for part in np.array_split(taken, min(10, len(taken)))
            ]
            index = (run / "run.json").stat().st_size / len(taken)
            what = f"{len(taken)} shards, {index:.0f} bytes of index and, by tenths, "
            what += " ".join(f"{ms:.1f}" for ms in tenths) + " ms a shard"
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            keep("write", taken_by(Measured(*total, memory, what)))
        if "score" in chosen.steps and "score" not in done:
            keep("score", beside_h5py(run))
        for name in [name for name in chosen.steps if name != "score" and name not in done]:
            more = [chosen.without] if name == "evaluate" else []
            keep(name, taken_by(in_child(STEPS[name], run, *more)))
    finally:
        if folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
