"""Layers whose weight gradients are products over positions, as benchmarks take them."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.rules.products import Product
from gradscore.rules.windows import Geometry, window_product


class Layer(NamedTuple):
    """A linear layer or a convolution.

    Attributes:
        inputs: Shape of one input: positions and features, or channels and size.
        weight: Shape of the weight.
        stride: Stride of a convolution.
        padding: Padding of a convolution.
    """

    inputs: tuple[int, ...]
    weight: tuple[int, ...]
    stride: int = 1
    padding: int = 0

    @property
    def geometry(self) -> Geometry | None:
        """What the convolution does, or None of a linear layer."""
        if len(self.weight) == 2:
            return None
        return Geometry(torch.Size(self.weight), (self.stride,) * 2, (self.padding,) * 2, (1, 1))

    def data(self, batch: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
        """Return drawn inputs and output gradients of ``batch`` samples."""
        x = torch.randn(batch, *self.inputs, dtype=dtype, device=device)
        w = torch.empty(self.weight, dtype=dtype, device=device)
        y = F.conv2d(x, w, None, self.stride, self.padding) if self.geometry else F.linear(x, w)
        return x, torch.randn_like(y)

    def product(self, x: Tensor, g: Tensor) -> Product:
        """Return the product that gives each sample's weight gradient."""
        if self.geometry is None:
            return Product(g.transpose(1, 2), x.transpose(1, 2))
        return window_product(x, g, self.geometry, len(x))


LAYERS = {
    "linear 384 to 1536, 197 positions": Layer((197, 384), (1536, 384)),
    "linear 768 to 768, 197 positions": Layer((197, 768), (768, 768)),
    "linear 768 to 3072, 197 positions": Layer((197, 768), (3072, 768)),
    "linear 768 to 3072, 49 positions": Layer((49, 768), (3072, 768)),
    "1x1, 64 to 256, 56 x 56": Layer((64, 56, 56), (256, 64, 1, 1)),
    "1x1, 256 to 1024, 14 x 14": Layer((256, 14, 14), (1024, 256, 1, 1)),
    "1x1, 512 to 2048, 7 x 7": Layer((512, 7, 7), (2048, 512, 1, 1)),
    "1x1, 320 to 1280, 7 x 7": Layer((320, 7, 7), (1280, 320, 1, 1)),
    "3x3, 64 to 64, 56 x 56": Layer((64, 56, 56), (64, 64, 3, 3), 1, 1),
    "3x3, 256 to 256, 14 x 14": Layer((256, 14, 14), (256, 256, 3, 3), 1, 1),
    "3x3, 256 to 512, stride 2, 14 x 14": Layer((256, 14, 14), (512, 256, 3, 3), 2, 1),
    "3x3, 512 to 512, 7 x 7": Layer((512, 7, 7), (512, 512, 3, 3), 1, 1),
    "7x7, 3 to 64, stride 2, 224 x 224": Layer((3, 224, 224), (64, 3, 7, 7), 2, 3),
    "16x16, 3 to 768, stride 16, 224 x 224": Layer((3, 224, 224), (768, 3, 16, 16), 16),
}
