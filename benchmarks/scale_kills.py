"""A run whose processes are killed at random, compared with that of one process.

    python benchmarks/scale_kills.py [--kills 200] [--parts 8] [--at-once 3] [--output FILE.csv]
    python benchmarks/scale_kills.py --executor ray [--kills 50] [--actors 2] [--output FILE.csv]

In parts: each round records the embedded digits with every kind of pass in parts, each in a
process that is killed (SIGKILL) after a random time, begun again, and now and then begun a second
time while it runs. A merge is killed, too. With Ray: each round records the same on a cluster of
this machine, one for all rounds, while at random times a worker is killed that holds the model; a
round whose task lost too many workers is begun again. Every row of the run must be that of one
process, byte for byte, and `gradscore run check` must find nothing.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import records
import timing

import gradscore.engine
from gradscore.errors import ModelError
from gradscore.recorded import extract
from gradscore.run import RunStore, check, merge

SETS = {"a": ("id", "digits:train"), "b": ("ood", "digits:noise")}
HOW = {
    "limit": {"a": 256, "b": 100},
    "batch_size": 8,
    "shard_rows": 8,
    "layers": "block4",
    "record": ("odin", "surrogates"),
    "epsilon": (0.1,),
    "keep": ("block4",),
}
TWICE = 0.15
"""Share of the starts of a part while another process records it."""


def record(run: Path, part: tuple[int, int] | None = None, **more: Any) -> None:
    """Record the whole run, or one part."""
    extract("digits", SETS, run, part=part, **HOW, **more)


def rows(run: Path) -> dict[tuple[str, str], object]:
    """Return every value of a run as bytes, by set and dataset."""
    store, found = RunStore(run), {}
    for name, entry in store.sets.items():
        passes = [one for one in entry.passes if one != "base"]
        blocks = list(store.blocks(name, norms=passes))
        for field in blocks[0]:
            values = np.concatenate([block[field] for block in blocks])
            found[name, field] = values.tolist() if values.dtype == object else values.tobytes()
    return found


def child(work: Callable, *arguments: object) -> BaseProcess:
    """Start a process that does a piece of work."""
    process = get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def one_round(run: Path, parts: int, at_once: int, longest: float, rng: random.Random) -> dict:
    """Record all parts under kills, and merge them; return what was counted."""
    waiting, running = set(range(1, parts + 1)), []
    kills = starts = twice = 0
    while waiting or running:
        while len(running) < at_once and (waiting or running):
            again = bool(running) and (not waiting or rng.random() < TWICE)
            part = running[0][0] if again else rng.choice(sorted(waiting))
            if again and twice > starts * TWICE:
                break
            twice += again
            starts += 1
            waiting.discard(part)
            # Now and then one may run to its end; the longer it lasts, the surer is a kill.
            ends = time.perf_counter() + rng.uniform(0.02, longest)
            running.append((part, child(record, run, (part, parts)), ends))
        time.sleep(0.005)
        for entry in list(running):
            part, process, ends = entry
            if process.exitcode is None and time.perf_counter() < ends:
                continue
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            process.join()
            running.remove(entry)
            if process.exitcode != 0:
                waiting.add(part)
    merges = 0
    while not (run / "run.json").exists():
        process = child(merge, run)
        time.sleep(rng.uniform(0, 0.15))
        if process.exitcode is None and merges < 5:
            os.kill(process.pid, signal.SIGKILL)
            merges += 1
        process.join()
    if (run / ".parts").exists():  # left by a merge that was killed behind its last step
        merge(run)
    return {"starts": starts, "twice": twice, "kills": kills + merges, "merges killed": merges}


def workers() -> list[int]:
    """Return the processes that hold a model for a cluster that this process started."""

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            is_actor = (place / "cmdline").read_bytes().startswith(b"ray::_Actor")
            if is_actor and parent(parent(int(place.name))) == os.getpid():
                found.append(int(place.name))
    return found


def ray_round(run: Path, actors: int, longest: float, rng: random.Random) -> dict:
    """Record a run on the cluster while workers are killed; return what was counted."""
    counted, over = Counter({"starts": 0, "kills": 0}), threading.Event()

    def kill() -> None:
        while not over.wait(rng.uniform(0.02, longest)):
            there = workers()
            if there:
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(there), signal.SIGKILL)
                    counted["kills"] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        while True:
            counted["starts"] += 1
            try:
                record(run, executor="ray", actors=actors)
                break
            except ModelError:  # one task ended its workers again and again
                continue
    finally:
        over.set()
        killer.join()
    return dict(counted)


def main() -> None:
    """Run rounds until so many were killed, compare each, and write what was counted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--executor", choices=("local", "ray"), default="local")
    parser.add_argument("--kills", type=int, help="default: 200, with ray 50")
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--longest", type=float, help="most seconds to a kill; default: measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    on_ray = chosen.executor == "ray"
    kills = chosen.kills or (50 if on_ray else 200)
    rng, total = random.Random(chosen.seed), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        record(folder / "whole")
        whole_s = time.perf_counter() - began
        longest = chosen.longest or (whole_s if on_ray else 2.5 * whole_s / chosen.parts)
        if on_ray:
            import ray

            quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
            ray.init(num_cpus=chosen.actors, **quiet)
        expected, rounds, wrong = rows(folder / "whole"), 0, 0
        while total.get("kills", 0) < kills:
            run = folder / "killed"
            shutil.rmtree(run, ignore_errors=True)
            if on_ray:
                counted = ray_round(run, chosen.actors, longest, rng)
            else:
                counted = one_round(run, chosen.parts, chosen.at_once, longest, rng)
            total = {key: total.get(key, 0) + counted[key] for key in counted}
            rounds += 1
            same = rows(run) == expected and not check(run) and not list(run.rglob("*.part"))
            wrong += not same
            print(f"round {rounds}: {counted}, {'equal' if same else 'DIFFERENT'}", flush=True)
        if on_ray:
            ray.shutdown()
            row = {"executor": "ray", "actors": chosen.actors}
        else:
            row = {"executor": "local", "parts": chosen.parts, "at once": chosen.at_once}
        row |= {"rounds": rounds, **total, "rounds with another row": wrong}
        row |= {"device": timing.device_name("cpu"), "gradscore": gradscore.__version__}
        print(row)
        if chosen.output:
            records.write(chosen.output, [row])
        assert not wrong


if __name__ == "__main__":
    main()
