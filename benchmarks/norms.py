"""Gradient norms of the last layer, the last block and all parameters: time and memory.

python benchmarks/norms.py -o norms-cpu.csv
python benchmarks/norms.py --device cuda --batch 256 -o norms-cuda.csv

Method: gradscore/bench/norms.py says what is compared with what. Rows are medians of rounds in
which a method and the ordinary pass run once each, in a process of their own; a ratio of 1.1 is a
tenth slower than one batched forward and backward. Of vmap(grad) the best of its chunk sizes in
the record counts. On a GPU the table is taken with and without TF32.
"""

import argparse
import csv
from pathlib import Path

from gradscore.bench.norms import METHODS, SUBSETS, measure

MODELS = {
    "cifar:resnet20": (64, 32),
    "timm:resnet18": (16, 224),
    "timm:vit_tiny_patch16_224": (16, 224),
    "timm:mobilenetv2_100": (16, 224),
    "timm:resnetv2_50x1_bit": (16, 224),
}


def main() -> None:
    """Measure, print, and append to a CSV row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--subset", action="append", choices=SUBSETS)
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, help="in place of the model's own")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each method")
    parser.add_argument("--thread-time", action="store_true", help="one thread's own seconds")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--memory", action="append", choices=METHODS, help="methods whose peak memory to take"
    )
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    for tf32 in (False, True) if options.device == "cuda" else (False,):
        for spec in options.model or MODELS:
            for subset in options.subset or SUBSETS:
                batch, size = MODELS[spec]
                for row in measure(
                    spec,
                    subset,
                    batch=options.batch or batch,
                    size=size,
                    device=options.device,
                    tf32=tf32,
                    methods=options.method or METHODS,
                    repeats=options.repeats,
                    seconds=options.seconds,
                    thread_time=options.thread_time,
                    memory=METHODS if options.memory is None else options.memory,
                ):
                    print(row, flush=True)
                    if options.output:
                        _append(options.output, row)


def _append(path: Path, row: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
