"""The weight gradient of a convolution for each sample, in tiles: several forms, one a shape.

Ratios in comments are to the library's weight gradient summed over the batch, on two cores.
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.rules.rule import Tile, Tiling, matrix_product, product_tiles, spans, tile_elements
from gradscore.rules.windows import Geometry, product_sizes, window_product

FEW_POSITIONS = 1024
"""Up to so many output positions, the library's weight gradient of one sample is slow."""
FEW_POSITIONS_AVX512 = 384
"""The same where the library has kernels for vectors of 512 bits, which products do not match."""
FEW_CHANNELS = 4
"""Up to so many input channels, as in a first layer, folding the batch into groups is slow."""
SMALL_KERNEL = 9
"""Up to so many entries, a first layer's kernel is worth products by rows wherever positions are
few for any processor (0.5 to 0.9 of the library's weight gradients of one sample each)."""
MANY_OUTPUTS = 64
"""From so many output channels, products of matrices are worth the copies they read."""

_convolution_backward = torch.ops.aten.convolution_backward.default


def conv_tiles(x: Tensor, g: Tensor, geometry: Geometry, samples: int) -> Iterator[Tile]:
    """Return each sample's weight gradient in tiles, by the form that suits the convolution.

    Products of matrices serve kernels of one entry (0.95 to 1.3), kernels that tile the image
    (0.9), and on a CPU, by rows of the kernel, those with few positions (0.9 to 1.4, where the
    library's weight gradient of one sample needs 1.3 to 8); the library's weight gradient with
    the batch folded into groups serves the others (0.7 to 1.4), above all depthwise ones.

    Args:
        x: Inputs, shape ``[samples * k, in_channels, ...]``, the rows of a sample side by side.
        g: Output gradients, shape ``[samples * k, out_channels, ...]``.
        geometry: The convolution.
        samples: Number of samples.
    """
    first_layer = geometry.shape[1] <= FEW_CHANNELS
    if geometry.groups == 1 and first_layer and not x.is_cpu:
        return unfolded_tiles(x, g, geometry, samples)
    if geometry.groups > 1 or geometry.transposed:
        return folded_tiles(x, g, geometry, samples)
    if geometry.shape[2:].numel() == 1 and not any(geometry.padding):
        return pointwise_tiles(x, g, geometry, samples)
    if geometry.tiles_the_image:
        return patch_tiles(x, g, geometry, samples)
    small = first_layer and geometry.shape[2:].numel() <= SMALL_KERNEL
    few = g.shape[2:].numel() <= (FEW_POSITIONS if small else few_positions()) and x.is_cpu
    worth = first_layer or geometry.shape[0] >= MANY_OUTPUTS
    if worth and few and x.ndim == 4 and len(x) == samples:
        return kernel_row_tiles(x, g, geometry)
    return folded_tiles(x, g, geometry, samples)


@cache
def few_positions() -> int:
    """Return up to how many output positions a CPU multiplies by rows of the kernel.

    The choice rests on the shape and on the kind of processor alone: a measurement at first use
    would give one call's last digits to chance.
    """
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return FEW_POSITIONS_AVX512 if avx512 else FEW_POSITIONS


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


def patch_tiles(x: Tensor, g: Tensor, geometry: Geometry, samples: int) -> Iterator[Tile]:
    """Yield the gradients of a kernel whose places lie side by side: products over patches."""
    dims, kernel = x.ndim - 2, geometry.shape[2:]
    for axis, (steps, size) in enumerate(zip(g.shape[2:], kernel, strict=True)):
        # Each axis becomes its steps and the places within one.
        at = 2 + 2 * axis
        x = x.narrow(at, 0, steps * size).unflatten(at, (steps, size))
    steps, places = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)
    patches = x.permute(0, *steps, 1, *places).reshape(samples, -1, geometry.shape[1:].numel())
    return product_tiles(_by_sample(g, samples), patches)


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
    tiling = Tiling.of(x, n, channels, kernel_h * columns)
    memory = x.new_empty(tiling.samples * kernel_h * tiling.channels * columns)
    for samples in spans(n, tiling.samples):
        count = samples.stop - samples.start
        shifted = _shifted(x[samples], geometry, height, width)
        rights = []
        for i in range(kernel_h):
            down, remainder = divmod(i * geometry.dilation[0], geometry.stride[0])
            right = shifted.select(1, remainder).narrow(2, down * width, positions)
            rights.append(right.transpose(1, 2))
        left = g[samples].reshape(count, channels, positions)
        for rows in spans(channels, tiling.channels):
            size = rows.stop - rows.start
            tile = memory[: count * kernel_h * size * columns]
            tile = tile.view(kernel_h, count, size, columns)
            for right, products in zip(rights, tile.unbind(), strict=True):
                matrix_product(left.narrow(1, rows.start, size), right, products)
            yield Tile(samples, rows, tile.transpose(0, 1))


def _shifted(x: Tensor, geometry: Geometry, height: int, width: int) -> Tensor:
    """Return ``[n, remainders, kernel_w * in_channels, rows * width]`` of shifted inputs."""
    (kernel_h, kernel_w), n = geometry.shape[2:], len(x)
    (step_h, step_w), (down, right) = geometry.stride, geometry.dilation
    pad_h, pad_w = geometry.padding
    rows = (kernel_h - 1) * down // step_h + height
    remainders = min(step_h, (kernel_h - 1) * down + 1)
    # Every remainder has as many rows as the first, though the last ones may lie below the image.
    below = max(0, remainders + step_h * (rows - 1) - x.shape[2] - 2 * pad_h)
    if pad_h or pad_w or below:
        x = F.pad(x, (pad_w, pad_w, pad_h, pad_h + below))
    image, channel, line, entry = x.stride()
    shifted = x.as_strided(
        (n, remainders, kernel_w, x.shape[1], rows, width),
        (image, line, right * entry, channel, step_h * line, step_w * entry),
    )
    return shifted.reshape(n, remainders, kernel_w * x.shape[1], rows * width)


def unfolded_tiles(x: Tensor, g: Tensor, geometry: Geometry, samples: int) -> Iterator[Tile]:
    """Yield the gradients of an ungrouped convolution: products over unfolded inputs.

    An unfolded input has few columns where there are few channels. A GPU then takes many images
    at once, where the batch folded into groups would be a launch, or a group of three channels,
    for each. Torch's own unfolding would be a launch for each, too.
    """
    k = len(x) // samples
    each = max(product_sizes(x, g, geometry, samples).unfolded, geometry.shape.numel())
    for part in spans(samples, max(1, tile_elements(x) // max(1, each))):
        inside = slice(part.start * k, part.stop * k)
        product = window_product(x[inside], g[inside], geometry, part.stop - part.start)
        for tile in product.tiles():
            samples_of = slice(part.start + tile.samples.start, part.start + tile.samples.stop)
            yield tile._replace(samples=samples_of)


def folded_tiles(x: Tensor, g: Tensor, geometry: Geometry, samples: int) -> Iterator[Tile]:
    """Yield the library's weight gradients, the samples being groups of one image."""
    k, shape = len(x) // samples, geometry.shape
    first_layer = shape[1] <= FEW_CHANNELS and geometry.groups == 1
    # The library copies what it reads, so that a part's input should stay in cache as well.
    each = max(shape.numel(), x[:k].numel() // 2)
    at_once = 1 if first_layer else Tiling.of(x, samples, 1, each).samples
    for part in spans(samples, at_once):
        n, inside = part.stop - part.start, slice(part.start * k, part.stop * k)
        some = (x, g) if n == samples else (x[inside], g[inside])
        gradient = folded_gradient(*some, geometry, n)
        yield Tile(part, slice(0, shape[0]), gradient.reshape(n, 1, shape[0], -1))


def folded_gradient(x: Tensor, g: Tensor, geometry: Geometry, samples: int) -> Tensor:
    """Return the weight gradients of some samples, shape ``[samples, *weight.shape]``."""
    shape, dims = geometry.shape, len(geometry.shape) - 2
    k = len(x) // samples
    zeros = x.new_empty(1).expand(samples * shape[0], *shape[1:])
    gradient = _convolution_backward(
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
    folded = k, n * x.shape[1], *x.shape[2:]
    if k == 1:
        return x.reshape(folded)
    return x.reshape(n, k, *x.shape[1:]).transpose(0, 1).reshape(folded)
