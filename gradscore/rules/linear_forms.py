"""Norms of per-sample gradients of a matrix that multiplies features."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gradscore.norms import vector_norm
from gradscore.rules.tile_forms import Tile, Tiling, matrix_product, reduce_tiles, spans


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
    return reduce_tiles(product_tiles(g.transpose(1, 2), x), orders)


def product_tiles(left: Tensor, right: Tensor) -> Iterator[Tile]:
    """Yield ``left @ right`` of each sample in tiles.

    Args:
        left: Shape ``[n, channels, positions]``.
        right: Shape ``[n, positions, columns]``.

    Yields:
        Tiles with one row of ``columns`` entries for every channel.
    """
    n, channels, columns = len(left), left.shape[1], right.shape[2]
    tiling = Tiling.of(left, n, channels, columns)
    memory = left.new_empty(tiling.samples * tiling.channels * columns)
    for samples in spans(n, tiling.samples):
        for rows in spans(channels, tiling.channels):
            count, size = samples.stop - samples.start, rows.stop - rows.start
            tile = memory[: count * size * columns].view(count, size, columns)
            matrix_product(left[samples, rows], right[samples], tile)
            yield Tile(samples, rows, tile.unsqueeze(1))
