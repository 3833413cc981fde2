"""Products over positions, one a sample: the weight gradients of linear layers and convolutions.

For each sample such a gradient is ``sum over positions of g x^T``. Both factors are views of what
a call holds: kernels of a convolution that overlap read the same memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from gradscore.rules.rule import Tile, product_tiles


class Sizes(NamedTuple):
    """Sizes of a product, known before its factors are made.

    Attributes:
        samples: Number of samples.
        channels: Rows of each product: output channels.
        columns: Columns of each product: input channels times entries of the kernel.
        positions: What it is summed over.
    """

    samples: int
    channels: int
    columns: int
    positions: int

    @property
    def saving(self) -> float:
        """How many times the product's multiplications are those of its two Gram matrices."""
        gram = self.positions * (self.channels + self.columns)
        return self.channels * self.columns / gram if gram else 0.0

    @property
    def unfolded(self) -> int:
        """Entries of one sample's right factor, were each written out."""
        return self.columns * self.positions


@dataclass(frozen=True)
class Product:
    """``left @ right^T`` of each sample, summed over positions.

    Attributes:
        left: Output gradients, shape ``[samples, channels, *positions]``, at any strides.
        right: Inputs, shape ``[samples, *columns, *positions]``, with the same positions.
    """

    left: Tensor
    right: Tensor

    @property
    def column_axes(self) -> int:
        """How many axes of ``right`` are columns."""
        return self.right.ndim - self.left.ndim + 1

    @property
    def sizes(self) -> Sizes:
        """The sizes of the product."""
        samples, channels, *positions = self.left.shape
        columns = self.right.shape[1 : 1 + self.column_axes]
        return Sizes(samples, channels, math.prod(columns), math.prod(positions))

    def __getitem__(self, samples: slice) -> "Product":
        """Return the product of some samples."""
        return Product(self.left[samples], self.right[samples])

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return both factors as ``[samples, rows, positions]``, copied where views do not do."""
        n, channels, columns, positions = self.sizes
        return self.left.reshape(n, channels, positions), self.right.reshape(n, columns, positions)

    def tiles(self) -> Iterator[Tile]:
        """Return the product in tiles: the plain form."""
        left, right = self.matrices()
        return product_tiles(left, right.mT)
