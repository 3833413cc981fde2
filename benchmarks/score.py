"""Scoring a run from disk beside plainly reading the same files; the run is written and removed.

python benchmarks/score.py --rows 1000000 -o benchmarks/results/score-cpu.csv
"""

import argparse
import csv
import tempfile
from pathlib import Path

from gradscore.bench.score import measure, write_run


def main() -> None:
    """Write a run, measure, print, and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--method", action="append", dest="methods")
    parser.add_argument("--run", type=Path, help="measure this run, and leave it")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.run
        if run is None:
            run = Path(folder, "run")
            sizes = {"features": options.features, "classes": options.classes}
            write_run(run, rows=options.rows, **sizes)
        row = measure(run, methods=options.methods or ("gradnorm",))
    print(row)
    if options.output is not None:
        with open(options.output, "w", newline="") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
