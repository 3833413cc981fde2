"""Peak memory of a model's first call, which copies the model to check it, and of later calls.

python benchmarks/proofs_memory.py -o benchmarks/results/proofs-memory-cpu.csv

Each case runs in a fresh process. Peaks are above the model and its input, in units of the memory
of the model's weights; what the images themselves take in a forward is in them.
"""

import argparse
import itertools
import multiprocessing
from pathlib import Path

import memory
import records
import torch
from torch import Tensor, nn

import gradscore as gs

MODELS = ("mlp of 4 layers", "mlp of 1 layer", "timm:vit_base_patch16_224")
DTYPES = ("float32", "float64")
LAYERS = ("last", "all")
BATCH = 2


def drawn(name: str, width: int | None = None) -> tuple[nn.Module, Tensor]:
    """Return a model with random weights, 67 million of them by default, and its input.

    Args:
        name: One of MODELS.
        width: Of an MLP, in place of its own.
    """
    torch.manual_seed(0)
    if not name.startswith("mlp"):
        return gs.create_model(name, "random"), torch.randn(BATCH, 3, 224, 224)
    depth = int(name.split()[2])
    width = width or int((2**26 / depth) ** 0.5)
    hidden = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10)), torch.randn(BATCH, width)


def measure(case: tuple[str, str, str]) -> dict[str, object]:
    """Return one row for a model, a type and a choice of layers."""
    name, dtype, layers = case
    precision = getattr(torch, dtype)
    # Code that loads on the first call of any model does not count.
    small, images = drawn("mlp of 1 layer", 4)
    gs.gradient_norms(small.to(precision).eval(), images.to(precision), layers=layers)
    model, images = drawn(name)
    model, images = model.to(precision).eval(), images.to(precision)
    weights = sum(parameter.nbytes for parameter in model.parameters()) / 2**20
    first, later = (
        memory.peak_mib(lambda: gs.gradient_norms(model, images, layers=layers)) for _ in range(2)
    )
    return {
        "model": name,
        "dtype": dtype,
        "layers": layers,
        "weights_mib": round(weights, 1),
        "first_over_weights": round(first / weights, 2),
        "later_over_weights": round(later / weights, 2),
        "batch": BATCH,
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gradscore": gs.__version__,
    }


def main() -> None:
    """Measure, print and write a CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    rows = []
    cases = itertools.product(MODELS, DTYPES, LAYERS)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for row in pool.imap(measure, cases, chunksize=1):
            print(*row.values(), sep="  ", flush=True)
            rows.append(row)
    if options.output is not None:
        records.write(options.output, rows)


if __name__ == "__main__":
    main()
