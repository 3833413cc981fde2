"""Weight standardisation: the gradient with respect to the weight, in closed form.

Networks such as BiT standardise each output channel's weights in every forward, written as batch
norm with the statistics of its input: ``w^ = (w - mean w) / s`` with ``s = sqrt(var w + eps)``,
``var`` biased. From the gradient ``g`` with respect to ``w^`` follows, by channel,
``(g - mean g - w^ mean(g w^)) / s`` (Ioffe & Szegedy, ICML 2015, Section 3), which needs no more
than the tile of ``g`` that is in cache.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node

from gradscore.rules.convolution import in_tile_order
from gradscore.rules.rule import Tile

_RESHAPES = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")


@dataclass(frozen=True)
class Standardisation:
    """How a standardised weight came from its parameter.

    Attributes:
        weight: The standardised weight, shape ``[channels, ...]``, detached.
        inverse: ``1 / s`` of each channel, shape ``[channels]``.
    """

    weight: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, made: Tensor) -> "Standardisation | None":
        """Return how ``made`` was standardised by channel, or ``None`` if it was not, or not so.

        It is when its graph is a training-mode batch norm, without scale and shift, of a
        parameter of the same shape, with one image and the parameter's first axis as channels.
        """
        node = _behind_reshapes(made.grad_fn)
        if node is None or node.name() != "NativeBatchNormBackward0":
            return None
        if not node._saved_training or node._saved_weight is not None:
            return None
        origin = _behind_reshapes(node.next_functions[0][0])
        parameter = getattr(origin, "variable", None)
        if parameter is None or parameter.shape != made.shape:
            return None
        if node._saved_input.shape[:2] != (1, len(made)):
            return None
        return cls(made.detach(), node._saved_result2)

    def pull_back(self, tile: Tile) -> Tensor:
        """Return the gradient with respect to the parameter, in the memory of the tile."""
        g = tile.gradient
        w = in_tile_order(self.weight[tile.channels], rows=g.shape[1])
        entries = g.shape[1] * g.shape[3]
        along = (g * w).sum(dim=(1, 3), keepdim=True).div_(-entries)
        mean = g.mean(dim=(1, 3), keepdim=True)
        inverse = self.inverse[tile.channels, None]
        return g.sub_(mean).addcmul_(w, along).mul_(inverse)


def _behind_reshapes(node: Node | None) -> Node | None:
    while node is not None and node.name() in _RESHAPES:
        node = node.next_functions[0][0]
    return node
