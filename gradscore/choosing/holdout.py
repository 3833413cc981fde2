"""Class hold-out: what a head that lacks some classes makes of their images.

The head's rows of a few classes are dropped. ID images that the whole head predicts as one of
them then play OOD, all others ID. These look much like the ID images: they are near. No pass over
the images is needed, and no label.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradscore.methods.rows import LastLayer, Rows

FOLDS = 5
FEWEST_CLASSES = 4
"""A head of fewer classes has none to spare."""
FEWEST_IMAGES = 10
"""A fold with fewer images on either side says nothing."""
SEED = 0


@dataclass(frozen=True)
class Holdout:
    """One fold.

    Attributes:
        dropped: Class numbers that the head lacks, shape ``[dropped]``.
        kept: Class numbers that it keeps, shape ``[kept]``.
    """

    dropped: Tensor
    kept: Tensor

    def head(self, head: LastLayer) -> LastLayer:
        """Return the last layer without the rows of the dropped classes."""
        return LastLayer(head.weight[self.kept], head.bias[self.kept])

    def rows(self, rows: Rows) -> Rows:
        """Return the same inputs without the logits of the dropped classes."""
        return Rows(rows.features, rows.logits[:, self.kept], rows.blocks)

    def held_out(self, rows: Rows) -> Tensor:
        """Return which inputs the whole head predicts as a dropped class, bool, ``[rows]``."""
        return torch.isin(rows.logits.argmax(dim=1), self.dropped)


def holdouts(classes: int) -> list[Holdout]:
    """Return the folds: each class is dropped once, in an order drawn from a fixed seed.

    Args:
        classes: Number of the head's classes; fewer than :data:`FEWEST_CLASSES` have no fold.
    """
    if classes < FEWEST_CLASSES:
        return []
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(SEED))
    folds = min(FOLDS, classes // 2)
    held = [order[fold::folds].sort().values for fold in range(folds)]
    return [Holdout(dropped, _others(classes, dropped)) for dropped in held]


def _others(classes: int, dropped: Tensor) -> Tensor:
    every = torch.arange(classes)
    return every[~torch.isin(every, dropped)]
