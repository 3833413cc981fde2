"""What a network put out for some inputs, as fitted methods see it, and its last layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradscore.errors import InvalidArgument

Fit = dict[str, Tensor]
"""What a method learned: named tensors, float64 unless said otherwise."""
FEWEST, FEW = 30, 100
"""Images to fit to: fewer than the first are refused, fewer than the second are told of."""
FOLDS = 2
TESTED = ("id", "ood")
"""Roles of sets that a score is tested on: what learns from one learns in folds."""


@dataclass(frozen=True)
class Rows:
    """Consecutive inputs of a set.

    Attributes:
        features: Input of the last layer, shape ``[rows, features]``.
        logits: Output of the network, shape ``[rows, classes]``.
        blocks: Stage (``block1``, ...) to its channel means, each ``[rows, channels]``.
    """

    features: Tensor
    logits: Tensor
    blocks: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.logits)

    def __getitem__(self, which: Tensor | slice) -> "Rows":
        """Return some of the rows: a slice, a mask or places."""
        blocks = {name: means[which] for name, means in self.blocks.items()}
        return Rows(self.features[which], self.logits[which], blocks)


@dataclass(frozen=True)
class LastLayer:
    """The linear layer that turns features into logits.

    Attributes:
        weight: Shape ``[classes, features]``.
        bias: Shape ``[classes]``; zeros where the layer has none.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the logits of features, shape ``[rows, classes]``, float64."""
        return features.double() @ self.weight.double().T + self.bias.double()


Source = Callable[[], Iterable[Rows]]
"""Gives the rows to fit to, in blocks; it may be called again, and gives the same ones."""


def in_fold(source: Source, fold: int, *, inside: bool) -> Source:
    """Return the rows of one of :data:`FOLDS` folds, or all others.

    Rows take turns, by their place among all rows.
    """

    def chosen() -> Iterator[Rows]:
        start = 0
        for rows in source():
            fold_of = torch.arange(start, start + len(rows)) % FOLDS
            start += len(rows)
            yield rows[(fold_of == fold) == inside]

    return chosen


def check_fit_size(count: int, what: str = "images to fit to") -> None:
    """Raise unless there are enough rows to learn from.

    Raises:
        InvalidArgument: If there are fewer than :data:`FEWEST`.
    """
    if count < FEWEST:
        raise InvalidArgument(f"Expected at least {FEWEST} {what}, got {count}.")
