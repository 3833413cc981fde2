"""Norms of per-sample gradients of a matrix that multiplies features."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gradscore.norms import vector_norm
from gradscore.rules.tile_forms import Tile, reduce_tiles, tile_elements


def linear_weight_norms(x: Tensor, g: Tensor, orders: Sequence[float]) -> Tensor:
    """Return the norms of ``sum over positions of g x^T`` of each sample.

    At one position the gradient is an outer product, whose norm is the product of two norms.

    Args:
        x: Inputs, shape ``[n, positions, in_features]``.
        g: Output gradients, shape ``[n, positions, out_features]``.
        orders: Orders of the norm.

    Returns:
        Norms, shape ``[n, len(orders)]``.
    """
    if x.shape[1] == 1:
        return torch.stack(
            [vector_norm(x, p, dim=(1, 2)) * vector_norm(g, p, dim=(1, 2)) for p in orders], dim=1
        )
    return reduce_tiles(product_tiles(g.transpose(1, 2), x), len(x), orders)


def product_tiles(left: Tensor, right: Tensor) -> Iterator[Tile]:
    """Yield ``left @ right`` of each sample in tiles.

    One product a sample is faster than a batched one as long as it fills a tile.

    Args:
        left: Shape ``[n, channels, positions]``.
        right: Shape ``[n, positions, columns]``.

    Yields:
        Tiles with one row of ``columns`` entries for every channel.
    """
    n, channels, columns = len(left), left.shape[1], right.shape[2]
    budget = tile_elements(left)
    height = max(1, min(channels, budget // max(1, columns)))
    at_once = max(1, min(n, budget // max(1, height * columns))) if height == channels else 1
    memory = left.new_empty(at_once * height * columns)
    for start in range(0, n, at_once):
        samples = slice(start, min(start + at_once, n))
        count = samples.stop - start
        for top in range(0, channels, height):
            rows = slice(top, min(top + height, channels))
            size = rows.stop - top
            tile = memory[: count * size * columns].view(count, size, columns)
            if count == 1:
                torch.mm(left[start, rows], right[start], out=tile[0])
            else:
                torch.bmm(left[samples, rows], right[samples], out=tile)
            yield Tile(samples, rows, tile.unsqueeze(1))
