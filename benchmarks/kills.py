"""Kill extraction at random moments, and damage finished runs bit by bit; record what is noticed.

    python benchmarks/kills.py --kills 30 --flips 200 -o benchmarks/results/kills.csv

Each killed run must be sound, and once resumed hold byte for byte what an undisturbed run holds.
Each flipped bit and each truncation must be reported by `check`, in the right file. One row a
trial: kind, detail, outcome.
"""

import argparse
import csv
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import gradscore.engine  # noqa: F401  what the children need is loaded once, before they fork
from gradscore.errors import RunError
from gradscore.extraction import extract
from gradscore.models.preprocessing import Preprocessing
from gradscore.run import RunStore, check

SETS = {"digits": ("id", "digits:test"), "unseen": ("ood", "digits:unseen")}


def small_model() -> nn.Module:
    """Return a fixed convolutional network for the embedded digits."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, 6),
    ).eval()  # fmt: skip
    model.preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="L")
    return model


def record(run: Path) -> None:
    """Extract the embedded sets, in small shards."""
    torch.set_num_threads(1)
    extract(small_model(), SETS, run, batch_size=8, shard_rows=32, p=(1.0, 2.0))


def start(run: Path) -> multiprocessing.Process:
    """Extract in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=record, args=(run,))
    process.start()
    return process


def finish(run: Path) -> float:
    """Extract to the end; return the seconds it took."""
    began = time.perf_counter()
    process = start(run)
    process.join()
    if process.exitcode:
        raise RunError(f"Extraction ended with {process.exitcode}.")
    return time.perf_counter() - began


def content(run: Path) -> dict[str, bytes]:
    """Return the bytes of every recorded array."""
    store = RunStore(run)
    arrays: dict[str, bytes] = {}
    for name in store.sets:
        for block in store.blocks(name, norms=list(store.info.passes)):
            for field, values in block.items():
                text = values.dtype == object
                data = "\n".join(values).encode() if text else values.tobytes()
                arrays[f"{name}/{field}"] = arrays.get(f"{name}/{field}", b"") + data
    return arrays


def kill_once(run: Path, delay: float) -> str:
    """Kill an extraction after a while; return what is there, or what is wrong with it."""
    process = start(run)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    if not (run / "run.json").exists():
        return "nothing yet"
    problems = check(run)
    if problems:
        return f"damaged: {problems[0]}"
    done = sum(entry.done("base") for entry in RunStore(run).sets.values())
    return f"{done} images finished"


def damage(run: Path, rng: random.Random, *, truncate: bool) -> tuple[str, bool]:
    """Damage one file, ask `check`, repair it; return what was done and whether it was found."""
    files = sorted(path for path in run.rglob("*.*") if path.is_file() and path.name != ".lock")
    path = rng.choice(files)
    sound = path.read_bytes()
    place = rng.randrange(len(sound))
    if truncate:
        what, bad = f"truncated to {place} bytes", sound[:place]
    else:
        bit = rng.randrange(8)
        what = f"bit {bit} of byte {place}"
        bad = sound[:place] + bytes([sound[place] ^ (1 << bit)]) + sound[place + 1 :]
    path.write_bytes(bad)
    name = path.relative_to(run).as_posix()
    found = [problem.file for problem in check(run)] == [name]
    path.write_bytes(sound)
    return f"{name}: {what}", found


def main() -> None:
    """Run the trials and write their record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--truncations", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = Path(folder, "undisturbed")
        seconds = finish(undisturbed)
        expected = content(undisturbed)
        for number in range(arguments.kills):
            run = Path(folder, f"killed-{number}")
            delays = [rng.uniform(0, seconds) for _ in range(rng.choice((1, 1, 2)))]
            found = [kill_once(run, delay) for delay in delays]
            finish(run)
            equal = content(run) == expected and not check(run)
            sound = not any("damaged" in state for state in found)
            when = " and ".join(f"{delay:.2f} s" for delay in delays)
            outcome = "byte-equal after resuming" if equal and sound else "FAILED"
            rows.append(("kill", f"after {when}: {'; '.join(found)}", outcome))
            shutil.rmtree(run)
        for kind, count in (("flip", arguments.flips), ("truncation", arguments.truncations)):
            for _ in range(count):
                what, noticed = damage(undisturbed, rng, truncate=kind == "truncation")
                rows.append((kind, what, "found" if noticed else "FAILED"))
    for kind in ("kill", "flip", "truncation"):
        outcomes = [outcome for of, _, outcome in rows if of == kind]
        print(f"{kind}: {len(outcomes)} trials, {outcomes.count('FAILED')} failed")
    if arguments.output:
        with open(arguments.output, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("kind", "detail", "outcome"))
            writer.writerows(rows)
    raise SystemExit(any(outcome == "FAILED" for _, _, outcome in rows))


if __name__ == "__main__":
    main()
