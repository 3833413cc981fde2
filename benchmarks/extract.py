"""Extraction beside the bare forward over the same loader; appends to a CSV.

Run ``python benchmarks/extract.py -o benchmarks/results/extract-cpu.csv``.
"""

import argparse
import csv
from dataclasses import asdict
from pathlib import Path

from gradscore.bench.extract import MODELS, measure


def main() -> None:
    """Measure, print and append to the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", dest="models")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--layers", default="last")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-o", "--output", type=Path)
    options = vars(parser.parse_args())
    output, models = options.pop("output"), options.pop("models") or MODELS
    for row in measure(models, **options):
        print(row)
        if output is not None:
            new = not output.exists()
            with open(output, "a", newline="") as file:
                writer = csv.DictWriter(file, asdict(row), lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(asdict(row))


if __name__ == "__main__":
    main()
