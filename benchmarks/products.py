"""Norms of per-sample weight gradients: other forms beside tiles of the gradients themselves.

python benchmarks/products.py -o benchmarks/results/products-cpu.csv

Gram matrices (order 2 alone) are timed also for some layers where they are not taken; the kernels
are timed on CUDA. A ratio of 0.5 is half of the time of the tiles, in the same round.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import records
import torch
from layers import LAYERS, Layer
from timing import device_name, device_option, interleaved
from torch import Tensor

from gradscore.rules import cuda_gram, cuda_products, gram
from gradscore.rules.convolution_tiles import conv_tiles
from gradscore.rules.product_norms import find_norms
from gradscore.rules.rule import reduce_tiles

FORMS = {
    "gram": gram.gram_norms,
    "kernel": cuda_products.product_norms,
    "gram kernel": cuda_gram.gram_norms,
}


def tiles_norms(layer: Layer, x: Tensor, g: Tensor, p: float) -> Tensor:
    """Return norms from tiles of the gradients, shape ``[samples, 1]``."""
    if layer.geometry is None:
        return reduce_tiles(layer.product(x, g).tiles(), (p,))
    return reduce_tiles(conv_tiles(x, g, layer.geometry, len(x)), (p,))


def other_norms(layer: Layer, x: Tensor, g: Tensor, p: float, form: str) -> Tensor:
    """Return norms by one of the ``FORMS``, shape ``[samples, 1]``."""
    return FORMS[form](layer.product(x, g), (p,))


def rows(batch: int, dtype: torch.dtype, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield a row for every layer, order and form."""
    for (name, layer), p in itertools.product(LAYERS.items(), (1.0, 2.0)):
        x, g = layer.data(batch, dtype, device)
        sizes = layer.product(x, g).sizes
        able = {
            "gram": p == 2 and x.is_cpu and dtype in gram.LEAST_BOUND and sizes.saving > 0.5,
            "kernel": cuda_products.serves(sizes, (p,), x),
            "gram kernel": cuda_gram.serves(sizes, (p,), x),
        }
        for form in (form for form in FORMS if able[form]):
            about = {"layer": name, "batch": batch, "type": str(dtype)[6:], "p": p, "form": form}
            about |= {"saving": round(sizes.saving, 2)}
            about["taken"] = find_norms(sizes, (p,), g, x) is FORMS[form]
            yield about | compared(layer, x, g, p, form, seconds)


def compared(
    layer: Layer, x: Tensor, g: Tensor, p: float, form: str, seconds: float
) -> dict[str, Any]:
    """Return times and largest relative errors of a form and of tiles, as columns of a row."""
    tiles = partial(tiles_norms, layer, x, g, p)
    other = partial(other_norms, layer, x, g, p, form)
    exact = tiles_norms(layer, x.double(), g.double(), p)
    errors = [float((one().double() / exact - 1).abs().max()) for one in (tiles, other)]
    taken = interleaved(
        {"tiles": tiles, form: other}, repeats=15, seconds=seconds, device=x.device.type
    )
    ratios = [b / a for a, b in zip(taken["tiles"], taken[form], strict=True)]
    return {
        "tiles_ms": round(statistics.median(taken["tiles"]) * 1e3, 2),
        "ratio": round(statistics.median(ratios), 3),
        **{"lowest": round(min(ratios), 3), "highest": round(max(ratios), 3)},
        **{"rounds": len(ratios), "tiles_error": f"{errors[0]:.0e}", "error": f"{errors[1]:.0e}"},
        **{"device": device_name(x.device.type), "torch": torch.__version__},
    }


def main() -> None:
    """Measure, print, and append to a CSV row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=device_option, metavar="cpu|cuda")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    with torch.no_grad():
        for row in rows(
            options.batch, getattr(torch, options.dtype), options.device, options.seconds
        ):
            print(row, flush=True)
            if options.output:
                records.append(options.output, row)


if __name__ == "__main__":
    main()
