"""Norms of products over positions on CUDA, by a kernel that writes no gradient to memory."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gradscore.kernels import current, launches, obstacle
from gradscore.rules.products import Product, Sizes
from gradscore.rules.rule import combine_parts

KINDS = {1.0: 0, 2.0: 1, math.inf: 2}
"""Orders that the kernel knows, by what it calls them."""

MOST_ROWS = {torch.float32: 64, torch.float16: 128, torch.bfloat16: 128}
"""Most channels and columns of a tile: a product of float32 is three of TF32, with their parts."""

POSITIONS = 32
"""Positions that a program reads at once."""

ENTRIES_OF_FOUR_WARPS = 64 * 64
"""Entries of a tile that four warps hold: 32 a thread."""


def serves(sizes: Sizes, orders: Sequence[float], x: Tensor) -> bool:
    """Return whether the kernel serves: on CUDA, up to float32, orders 1, 2 and infinity alone.

    Whether it can be launched is tried once for a device and a type, and told once where not.
    """
    if not x.is_cuda or obstacle((x,)) or any(p not in KINDS for p in orders):
        return False
    return min(sizes) > 0 and _runs_on(x.device, x.dtype)


@cache
def _runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    instead = "Gradient norms are computed by torch, which writes the gradients to memory."
    return launches(lambda: _launch_one_entry(device, dtype), device, instead)


def _launch_one_entry(device: torch.device, dtype: torch.dtype) -> None:
    """Launch the kernel on one entry, which raises whatever stands in its way."""
    one = torch.ones(1, 1, 1, device=device, dtype=dtype)
    product_norms(Product(one, one), (1.0,))


def product_norms(product: Product, orders: Sequence[float], done: Tensor | None = None) -> Tensor:
    """Return norms of each sample's product, shape ``[samples, len(orders)]``, in float32.

    Args:
        product: At least one sample, channel, column and position, up to float32.
        orders: 1, 2 or infinity each.
        done: Samples not to multiply, whose norms are zero here, boolean, ``[samples]``.
    """
    from gradscore.rules.triton_products import product_norms_kernel

    programs, arguments, known = launch_of(product, orders, done)
    norms = arguments[2]
    with current(norms.device):
        product_norms_kernel[(programs,)](*arguments, **known)
    return combine_parts(norms, orders)


def launch_of(
    product: Product, orders: Sequence[float], done: Tensor | None = None
) -> tuple[int, tuple[Any, ...], dict[str, Any]]:
    """Return how many programs the kernel takes, its arguments, and what is compiled into it.

    Args:
        product: As of :func:`product_norms`.
        orders: As of :func:`product_norms`.
        done: As of :func:`product_norms`.

    Returns:
        The third argument is a new tensor for the tiles' norms, ``[tiles, samples, orders]``.
    """
    sizes = product.sizes
    tile = tile_of(sizes, product.left.dtype)
    tiles = math.ceil(sizes.channels / tile["CHANNELS"])
    tiles *= math.ceil(sizes.columns / tile["COLUMNS"])
    norms = product.left.new_empty(tiles, sizes.samples, len(orders), dtype=torch.float32)
    # A pointer that the compiled kernel never follows still needs some tensor behind it.
    arguments = (*arguments_of(product, norms), norms if done is None else done)
    known = {"KINDS": tuple(KINDS[p] for p in orders), "SKIP": done is not None, **tile}
    return tiles * sizes.samples, arguments, known


def arguments_of(product: Product, results: Tensor) -> tuple[Any, ...]:
    """Return a kernel's arguments: both factors, where to write, sizes and strides."""
    left, right, at = product.left, product.right, 1 + product.column_axes
    positions, left_position, right_position = joined(
        left.shape[2:], left.stride()[2:], right.stride()[at:]
    )
    columns, right_column = joined(right.shape[1:at], right.stride()[1:at])
    return (
        *(left, right, results),
        *product.sizes,
        *(positions, columns),
        *(left.stride(0), left.stride(1), left_position),
        *(right.stride(0), right_column, right_position),
    )


def tile_of(sizes: Sizes, dtype: torch.dtype) -> dict[str, int]:
    """Return the tile of a program, as arguments of the kernel: one that fits its registers."""
    most = MOST_ROWS[dtype]
    powers = (1 << (size - 1).bit_length() for size in (sizes.channels, sizes.columns))
    channels, columns = (min(most, max(16, power)) for power in powers)
    tile = {"CHANNELS": channels, "COLUMNS": columns, "POSITIONS": POSITIONS}
    return tile | {"num_warps": 8 if channels * columns > ENTRIES_OF_FOUR_WARPS else 4}


def joined(sizes: Sequence[int], *strides: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return sizes and strides of axes that are counted as one, in as few axes as do.

    Neighbours become one axis where every tensor steps over them evenly; axes of one entry go.

    >>> joined((2, 3, 4), (12, 4, 1), (24, 8, 2))
    ((24,), (1,), (2,))
    """
    axes: list[tuple[int, ...]] = []
    for size, *steps in zip(sizes, *strides, strict=True):
        if size == 1:
            continue
        if axes and list(axes[-1][1:]) == [size * step for step in steps]:
            axes[-1] = (axes[-1][0] * size, *steps)
        else:
            axes.append((size, *steps))
    return tuple(zip(*(axes or [(1, *(0 for _ in strides))]), strict=True))
