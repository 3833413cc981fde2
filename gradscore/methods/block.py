"""Some rows of a run, with the intermediate results that several questions share."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.deviation import one_hot_norm, uniform_norm
from gradscore.last_layer import feature_norm
from gradscore.methods.orders import deviation_norms, norms_of_orders

PLAIN_ORDERS = frozenset((1.0, 2.0, math.inf))
"""Orders without powers to share: each is fastest alone, whatever else is asked."""


class Shared(NamedTuple):
    """A norm that several questions may want: of the features, or of the softmax deviation.

    Attributes:
        p: Order of the norm.
        temperature: Softmax temperature; None for the norm of the features.
        target: Target of the deviation; None for the norm of the features.
    """

    p: float
    temperature: float | None = None
    target: str | None = None


class Block:
    """Consecutive rows of one set.

    Attributes:
        arrays: The recorded arrays by name, as read from the run; each ``[rows, ...]``.
        device: Where the Triton kernels shall score the last layer; None for torch, here.
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray],
        shared: Iterable[Shared] = (),
        device: str | None = None,
    ) -> None:
        self.arrays = arrays
        self.device = device
        self._orders = defaultdict(set)
        for norm in shared:
            self._orders[norm[1:]].add(norm.p)
        self._norms: dict[Shared, Tensor] = {}

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.arrays["index"])

    @property
    def features(self) -> Tensor:
        """Input of the last layer, shape ``[rows, in_features]``, float32."""
        return torch.as_tensor(self.arrays["features"], device="cpu")

    @property
    def logits(self) -> Tensor:
        """Output of the network, shape ``[rows, classes]``, float32."""
        return torch.as_tensor(self.arrays["logits"], device="cpu")

    def recorded(self, name: str) -> Tensor:
        """Return what pass ``name`` recorded for these rows, shape ``[rows, ...]``."""
        return torch.as_tensor(self.arrays[name], device="cpu")

    def norm(self, wanted: Shared) -> Tensor:
        """Return a norm that was announced, computed together with its other orders.

        Args:
            wanted: One of the ``shared`` that the block was made with.

        Returns:
            Norms, shape ``[rows]``, float64.
        """
        if wanted not in self._norms:
            key = wanted[1:]
            orders = self._orders[key] - PLAIN_ORDERS
            if wanted.p in PLAIN_ORDERS:
                norms = {wanted.p: self._plain_norm(wanted).double()}
            elif wanted.target is None:
                norms = norms_of_orders(self.features, orders)
            else:
                norms = deviation_norms(self.logits, orders, *key)
            self._norms.update({Shared(p, *key): norm for p, norm in norms.items()})
        return self._norms[wanted]

    def _plain_norm(self, wanted: Shared) -> Tensor:
        if wanted.target is None:
            return feature_norm(self.features, p=wanted.p)
        norm = uniform_norm if wanted.target == "uniform" else one_hot_norm
        # In float64: confident inputs differ in V by less than float32 tells apart.
        return norm(self.logits, wanted.p, wanted.temperature, torch.float64)
