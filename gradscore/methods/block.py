"""Some rows of a run, with the norms that several scores share."""

from collections.abc import Iterable, Mapping

import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.closed_form import deviation_norms, feature_norms
from gradscore.objective import Objective


class Block:
    """Consecutive rows of one set.

    Args:
        arrays: The recorded arrays by name, as read from the run; each ``[rows, ...]``.
        feature_orders: Orders of the norms of the features that scores will want.
        deviations: Objectives of the softmax deviations whose norms scores will want.
        device: Where the Triton kernels shall score the last layer; None for here.
        backend: What computes the norms here: ``numba``, ``torch`` or ``auto``.
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray],
        feature_orders: Iterable[float] = (),
        deviations: Iterable[Objective] = (),
        device: str | None = None,
        backend: str = "auto",
    ) -> None:
        self.arrays = arrays
        self.device = device
        self._backend = backend
        self._orders, self._deviations = list(feature_orders), list(deviations)
        self._norms: dict[float | Objective, Tensor] = {}

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

    def feature_norm(self, order: float) -> Tensor:
        """Return a norm of the features that was announced, computed together with the others.

        Args:
            order: One of the ``feature_orders`` that the block was made with.

        Returns:
            Norms, shape ``[rows]``, float64.
        """
        if order not in self._norms:
            norms = feature_norms(self.features, self._orders, backend=self._backend)
            self._norms.update(zip(self._orders, norms, strict=True))
        return self._norms[order]

    def deviation_norm(self, objective: Objective) -> Tensor:
        """Return a deviation's norm that was announced, computed together with the others.

        Args:
            objective: One of the ``deviations`` that the block was made with.

        Returns:
            Norms, shape ``[rows]``, float64.
        """
        if objective not in self._norms:
            norms = deviation_norms(self.logits, self._deviations, backend=self._backend)
            self._norms.update(zip(self._deviations, norms, strict=True))
        return self._norms[objective]
