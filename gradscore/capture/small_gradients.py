"""Per-sample gradients of parameters with few entries, whose norms are taken together.

A bias, or the scale and shift of a normalisation, has an entry a channel. To reduce those of one
layer takes a CPU some microseconds, nearly all of them in the calls; stacked, the gradients of
many layers take the same few calls.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradscore.rules.rule import abs_norms

MOST_ENTRIES = 2**16
"""Per-sample gradients of at most so many entries in all, samples times sizes, are kept."""

MOST_KEPT = 2**20
"""When so many entries are kept, their norms are taken."""


class SmallGradients:
    """Gradients that are kept until their norms are taken.

    Args:
        orders: Orders of the norm.
    """

    def __init__(self, orders: Sequence[float]) -> None:
        self._orders = orders
        self._alike: dict[Any, list[tuple[str, Tensor]]] = {}
        self._entries = 0
        self._found: dict[str, Tensor] = {}

    def add(self, name: str, gradient: Tensor, arrived: Tensor) -> None:
        """Keep the gradient of a parameter.

        Args:
            name: The parameter's name.
            gradient: Shape ``[samples, *parameter.shape]``.
            arrived: The output gradient that it was made of; if both share memory, it is copied,
                as the backward goes on to use that.
        """
        if gradient.untyped_storage().data_ptr() == arrived.untyped_storage().data_ptr():
            gradient = gradient.clone()
        kind = gradient.shape, gradient.dtype, gradient.device
        self._alike.setdefault(kind, []).append((name, gradient))
        self._entries += gradient.numel()
        if self._entries > MOST_KEPT:
            self._reduce()

    def norms(self) -> dict[str, Tensor]:
        """Return norms ``[samples, len(orders)]`` by name."""
        self._reduce()
        return self._found

    def _reduce(self) -> None:
        for (shape, _, _), kept in self._alike.items():
            together = torch.stack([gradient for _, gradient in kept])
            rows = together.view(len(kept) * shape[0], shape[1:].numel())
            norms = abs_norms(rows, self._orders).view(len(kept), shape[0], len(self._orders))
            self._found |= zip((name for name, _ in kept), norms.unbind(), strict=True)
        self._alike, self._entries = {}, 0
