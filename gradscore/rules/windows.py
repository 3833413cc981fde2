"""Convolutions as products over positions: what a kernel meets at each place is a view.

At every place of the output a kernel meets a window of the padded input. All windows together,
``[rows, channels, *places, *kernel]``, are a view of it, whose entries overlap.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.rules.products import Product, Sizes


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

    @property
    def tiles_the_image(self) -> bool:
        """Whether the kernel's places lie side by side, as those of a patch embedding."""
        adjacent = tuple(self.shape[2:]) == self.stride and set(self.dilation) == {1}
        return adjacent and not any(self.padding)


def product_sizes(x: Tensor, g: Tensor, geometry: Geometry, samples: int) -> Sizes:
    """Return the sizes of :func:`window_product`, with the same arguments."""
    places = (x if geometry.transposed else g).shape[2:].numel()
    return Sizes(
        samples,
        geometry.shape[0],
        geometry.shape[1:].numel(),
        len(x) // samples * places,
    )


def window_product(x: Tensor, g: Tensor, geometry: Geometry, samples: int) -> Product:
    """Return each sample's weight gradient as a product over the places of the kernel.

    A transposed convolution is one of its output gradient that gives its input.

    Args:
        x: Inputs, shape ``[samples * k, in_channels, ...]``, the rows of a sample side by side.
        g: Output gradients, shape ``[samples * k, out_channels, ...]``.
        geometry: The convolution, with one group.
        samples: Number of samples.

    Returns:
        A product of rows ``geometry.shape[0]`` and columns ``geometry.shape[1:]``.
    """
    if geometry.transposed:
        x, g = g, x
    dims = len(geometry.shape) - 2
    met = windows(x, geometry, g.shape[2:]).unflatten(0, (samples, -1))
    places, kernel = range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
    return Product(
        g.unflatten(0, (samples, -1)).transpose(1, 2), met.permute(0, 2, *kernel, 1, *places)
    )


def windows(x: Tensor, geometry: Geometry, places: torch.Size) -> Tensor:
    """Return what the kernel meets at each place, shape ``[rows, channels, *places, *kernel]``.

    The padded input is copied where there is padding; its windows are not.
    """
    if any(geometry.padding):
        x = F.pad(x, [side for size in reversed(geometry.padding) for side in (size, size)])
    axes = zip(geometry.shape[2:], geometry.stride, geometry.dilation, places, strict=True)
    for axis, (kernel, step, apart, count) in enumerate(axes, start=2):
        x = x.unfold(axis, apart * (kernel - 1) + 1, step).narrow(axis, 0, count)[..., ::apart]
    return x
