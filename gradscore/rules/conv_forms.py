"""Norms of per-sample weight gradients of convolutions, the form chosen by shape.

Ratios in comments are to the library's weight gradient summed over the batch, on two cores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.rules.linear_forms import product_tiles
from gradscore.rules.tile_forms import Tile, reduce_tiles, tile_elements

FEW_POSITIONS = 256
"""Below this many output positions, the library's weight gradient of one sample is slow."""
FEW_CHANNELS = 4
"""Up to this many input channels, as in a first layer, folding the batch into groups is slow."""

LEAST_BAND = 32
"""Output channels below which a product of matrices no longer runs at full speed."""


@dataclass(frozen=True)
class Geometry:
    """What a convolution does beside its weight's values, every spatial dimension spelled out.

    Attributes:
        shape: Shape of the weight.
        stride: Strides.
        padding: Zeros on both sides.
        dilation: Steps between kernel entries.
        groups: Number of groups.
        transposed: Whether it is a transposed convolution.
        output_padding: Of a transposed convolution.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = (0, 0, 0)


def conv_weight_norms(
    x: Tensor, g: Tensor, geometry: Geometry, samples: int, orders: Sequence[float]
) -> Tensor:
    """Return the norms of each sample's weight gradient.

    Args:
        x: Inputs, shape ``[samples * k, in_channels, ...]``, the rows of a sample side by side.
        g: Output gradients, shape ``[samples * k, out_channels, ...]``.
        geometry: The convolution.
        samples: Number of samples.
        orders: Orders of the norm.

    Returns:
        Norms, shape ``[samples, len(orders)]``.
    """
    return reduce_tiles(conv_form(x, g, geometry, samples)(), samples, orders)


def conv_form(
    x: Tensor, g: Tensor, geometry: Geometry, samples: int
) -> Callable[[], Iterator[Tile]]:
    """Choose the form for a convolution: a function that yields the gradients in tiles.

    Products of matrices serve kernels of one entry (0.3 to 1.1) and, by rows of the kernel,
    those with few positions (0.95 at 49, 1.2 at 196, where the library needs 1.3 to 1.8); the
    library's weight gradient with the batch folded into groups serves the others (0.7 to 1.2),
    above all depthwise ones.
    """
    ungrouped = geometry.groups == 1 and not geometry.transposed
    if ungrouped and geometry.shape[2:].numel() == 1 and not any(geometry.padding):
        return lambda: pointwise_tiles(x, g, geometry, samples)
    few = g.shape[2:].numel() < FEW_POSITIONS and x.device.type == "cpu"
    if ungrouped and few and x.ndim == 4 and len(x) == samples:
        return lambda: kernel_row_tiles(x, g, geometry)
    return lambda: folded_tiles(x, g, geometry, samples)


def in_tile_order(weight: Tensor, rows: int) -> Tensor:
    """Bring a tensor shaped as the weight to the order of tiles, ``[rows, channels, columns]``."""
    if rows == 1:
        return weight.reshape(1, len(weight), -1)
    return weight.permute(2, 0, 3, 1).reshape(rows, len(weight), -1)


def pointwise_tiles(x: Tensor, g: Tensor, geometry: Geometry, samples: int) -> Iterator[Tile]:
    """Yield the gradients of a kernel with one entry: products over positions."""
    if any(step > 1 for step in geometry.stride):
        steps = (slice(None, None, step) for step in geometry.stride)
        x = x[(slice(None), slice(None), *steps)]
        # A stride leaves out what lies behind the last output.
        x = x[(slice(None), slice(None), *(slice(0, size) for size in g.shape[2:]))]
    return product_tiles(_by_sample(g, samples), _by_sample(x, samples).transpose(1, 2))


def _by_sample(x: Tensor, samples: int) -> Tensor:
    """Bring ``[samples * k, channels, ...]`` to ``[samples, channels, k * positions]``."""
    x = x.flatten(2)
    if len(x) == samples:
        return x
    return x.unflatten(0, (samples, -1)).transpose(1, 2).flatten(2)


def kernel_row_tiles(x: Tensor, g: Tensor, geometry: Geometry) -> Iterator[Tile]:
    """Yield the gradients of a plain two-dimensional convolution, one row of the kernel a product.

    The input is laid out once for each column of the kernel (and each remainder of the stride).
    A row of the kernel then reads a contiguous part of it, further down by whole output rows, so
    that the copies are a kernel's height fewer than those of an unfolded input.
    """
    n, channels, (height, width) = len(x), g.shape[1], g.shape[2:]
    (kernel_h, kernel_w), in_channels = geometry.shape[2:], x.shape[1]
    columns, positions = kernel_w * in_channels, height * width
    budget = max(1, tile_elements(x) // (kernel_h * columns))
    at_once, band = max(1, min(n, budget // channels)), channels
    if budget < channels:
        band = max(min(channels, LEAST_BAND), budget - budget % LEAST_BAND)
    memory = x.new_empty(at_once * kernel_h * band * columns)
    for start in range(0, n, at_once):
        samples = slice(start, min(start + at_once, n))
        count = samples.stop - start
        shifted = _shifted(x[samples], geometry, height, width)
        left = g[samples].reshape(count, channels, positions)
        for top in range(0, channels, band):
            rows = slice(top, min(top + band, channels))
            size = rows.stop - top
            tile = memory[: count * kernel_h * size * columns]
            tile = tile.view(kernel_h, count, size, columns)
            for i in range(kernel_h):
                down, remainder = divmod(i * geometry.dilation[0], geometry.stride[0])
                right = shifted[:, remainder, :, down * width : down * width + positions]
                right = right.transpose(1, 2)
                if count == 1:
                    torch.mm(left[0, rows], right[0], out=tile[i, 0])
                else:
                    torch.bmm(left[:, rows], right, out=tile[i])
            yield Tile(samples, rows, tile.transpose(0, 1))


def _shifted(x: Tensor, geometry: Geometry, height: int, width: int) -> Tensor:
    """Return ``[n, remainders, kernel_w * in_channels, rows * width]`` of shifted inputs."""
    (kernel_h, kernel_w), n = geometry.shape[2:], len(x)
    (step_h, step_w), (down, right) = geometry.stride, geometry.dilation
    pad_h, pad_w = geometry.padding
    x = F.pad(x, (pad_w, pad_w, pad_h, pad_h)) if pad_h or pad_w else x
    rows = (kernel_h - 1) * down // step_h + height
    remainders = min(step_h, (kernel_h - 1) * down + 1)
    shifted = x.new_empty(n, remainders, kernel_w, x.shape[1], rows, width)
    for remainder in range(remainders):
        for j in range(kernel_w):
            first = j * right
            part = x[:, :, remainder::step_h, first : first + step_w * (width - 1) + 1 : step_w]
            part = part[:, :, :rows]
            shifted[:, remainder, j, :, : part.shape[2]].copy_(part)
    return shifted.flatten(4).flatten(2, 3)


def folded_tiles(x: Tensor, g: Tensor, geometry: Geometry, samples: int) -> Iterator[Tile]:
    """Yield the library's weight gradients, the samples being groups of one image."""
    k, shape = len(x) // max(1, samples), geometry.shape
    first_layer = shape[1] <= FEW_CHANNELS and geometry.groups == 1
    at_once = 1 if first_layer else tile_elements(x) // max(1, shape.numel())
    at_once = max(1, min(samples, at_once))
    for start in range(0, samples, at_once):
        part = slice(start, min(start + at_once, samples))
        n = part.stop - start
        inside = slice(start * k, part.stop * k)
        gradient = folded_gradient(x[inside], g[inside], geometry, n)
        yield Tile(part, slice(0, shape[0]), gradient.reshape(n, 1, shape[0], -1))


def folded_gradient(x: Tensor, g: Tensor, geometry: Geometry, samples: int) -> Tensor:
    """Return the weight gradients of some samples, shape ``[samples, *weight.shape]``."""
    shape, dims = geometry.shape, len(geometry.shape) - 2
    k = len(x) // samples
    zeros = x.new_empty(1).expand(samples * shape[0], *shape[1:])
    gradient = torch.ops.aten.convolution_backward(
        _fold(g, samples, k),
        _fold(x, samples, k),
        zeros,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        geometry.transposed,
        geometry.output_padding[:dims],
        samples * geometry.groups,
        (False, True, False),
    )[1]
    return gradient.reshape(samples, *shape)


def _fold(x: Tensor, n: int, k: int) -> Tensor:
    """Bring ``[n * k, channels, ...]`` to ``[k, n * channels, ...]``."""
    return x.reshape(n, k, *x.shape[1:]).transpose(0, 1).reshape(k, n * x.shape[1], *x.shape[2:])
