"""Kill, damage, exchange and forge whatever gradscore reads, and count what goes unnoticed.

    python benchmarks/damage.py --trials trials.csv -o benchmarks/results/damage.csv

Every trial is drawn from its kind and number alone and is written to TRIALS as it ends; the same
command goes on where it was stopped. The table has a row a kind: how many trials were refused in
one line, gave the same result or a sound one, and how many of each failure there were:

    different   exit 0, and other numbers than the sound run gives
    executed    a program or a pickle was run
    outside     a file outside was read into the results, or written
    hung        no end within a minute of the processor's time, or ten of the clock's
    traceback   no line of error
    lost        something that was finished is gone, or does not come back
"""

import argparse
import csv
import os
import random
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import torch
from damage_trials import FAILURES, Trials
from hostile_files import bait

FINE = ("refused", "same", "sound")
COUNTS = {
    "kill": 200,
    "flip": 1000,
    "systematic": 10**6,
    "command": 100,
    "change": 200,
    "hostile": 500,
}
"""Trials of each kind; the systematic ones are at most as many as two shards have pieces."""
LIBRARIES = ("torch", "h5py", "numpy", "pillow", "pyarrow")


def main() -> None:
    """Run the trials that are not recorded yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=Path, default=Path("damage-trials.csv"))
    parser.add_argument("-o", "--output", type=Path)
    for kind, count in COUNTS.items():
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N")
    asked = vars(parser.parse_args())
    torch.set_num_threads(1)
    rows = []
    if asked["trials"].exists():
        with asked["trials"].open(newline="") as file:
            rows = list(csv.reader(file))
    with tempfile.TemporaryDirectory() as folder, asked["trials"].open("a", newline="") as file:
        os.environ["PATH"] = f"{bait(Path(folder))}:{os.environ['PATH']}"
        trials, writer = Trials(Path(folder)), csv.writer(file, lineterminator="\n")
        for kind in COUNTS:
            count = min(asked[kind], len(trials.pieces()) if kind == "systematic" else asked[kind])
            for number in range(sum(row[0] == kind for row in rows), count):
                rng = random.Random(f"{kind} {number}")
                row = [kind, str(number), *getattr(trials, kind)(rng, number)]
                writer.writerow([ascii(text)[1:-1] for text in row])
                file.flush()
                rows.append(row)
    versions = " ".join(f"{name} {version(name)}" for name in LIBRARIES)
    table = [("kind", "trials", *FINE, *FAILURES, "versions")]
    for kind in COUNTS:
        found = Counter(row[3] for row in rows if row[0] == kind)
        counts = [found[outcome] for outcome in (*FINE, *FAILURES)]
        table.append((kind, found.total(), *counts, f"python {sys.version.split()[0]} {versions}"))
    for line in table:
        print(*line[:-1])
    if asked["output"]:
        with asked["output"].open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(table)
    raise SystemExit(any(row[3] not in FINE for row in rows))


if __name__ == "__main__":
    main()
