"""What a network put out for some inputs, as fitted methods see it, and its last layer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from gradscore.errors import InvalidArgument

Fit = dict[str, Tensor]
"""What a method learned: named tensors, float64 unless said otherwise."""
FEWEST, FEW = 30, 100
"""Images to fit to: fewer than the first are refused, fewer than the second are told of."""
FOLDS = 2
FOLDING = "pairs, drawn by SplitMix64"
"""How rows fall into folds; another way is another name, for fits are kept."""
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


def fold_of(places: ArrayLike) -> Tensor:
    """Return the fold of rows, 0 or 1, by their places in a set.

    The two rows of a pair, such as 4 and 5, are in different folds; a hash of the pair draws which
    is where (SplitMix64; Steele, Lea & Flood, OOPSLA 2014). So folds are of one size, and no order
    of a set, such as classes in turn, puts one kind of image into one fold.

    Args:
        places: Shape ``[rows]``, not negative.

    Returns:
        Shape ``[rows]``, int64.
    """
    place = np.asarray(places).astype(np.uint64)
    z = ((place >> np.uint64(1)) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((place ^ (z >> np.uint64(63))) & np.uint64(1)).astype(np.int64))


def drawn_places(count: int, most: int) -> NDArray[np.int64]:
    """Return the places of ``most`` of some rows, or of all, in order; drawn by a fixed seed."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def in_fold(source: Source, fold: int, *, inside: bool) -> Source:
    """Return the rows of one of :data:`FOLDS` folds, or all others, by their place among all."""

    def chosen() -> Iterator[Rows]:
        start = 0
        for rows in source():
            folds = fold_of(np.arange(start, start + len(rows)))
            start += len(rows)
            yield rows[(folds == fold) == inside]

    return chosen


def check_fit_size(count: int, what: str = "images to fit to") -> None:
    """Raise unless there are enough rows to learn from.

    Raises:
        InvalidArgument: If there are fewer than :data:`FEWEST`.
    """
    if count < FEWEST:
        raise InvalidArgument(f"Expected at least {FEWEST} {what}, got {count}.")
