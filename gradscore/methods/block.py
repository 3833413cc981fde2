"""Some rows of a run, with the intermediate results that several scores share."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.closed_form import deviation_norms, feature_norms


class Shared(NamedTuple):
    """A norm that several scores may want: of the features, or of the softmax deviation.

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
        self._shared = list(dict.fromkeys(shared))
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
        """Return a norm that was announced, computed together with the others of its input.

        Args:
            wanted: One of the ``shared`` that the block was made with.

        Returns:
            Norms, shape ``[rows]``, float64.
        """
        if wanted not in self._norms:
            asked = [norm for norm in self._shared if (norm.target is None) == (not wanted.target)]
            if wanted.target is None:
                norms = feature_norms(self.features, [norm.p for norm in asked])
            else:
                norms = deviation_norms(self.logits, asked)
            self._norms.update(zip(asked, norms, strict=True))
        return self._norms[wanted]
