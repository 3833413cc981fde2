"""Class hold-out: what a head that lacks some classes makes of their images.

The head's rows of a few classes are dropped. ID images that the whole head predicts as one of
them then play OOD, all others ID. These look much like the ID images: they are near. No pass over
the images is needed, and no label.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import NotRecorded
from gradscore.methods import RecordedRun
from gradscore.run import FitInfo, PassInfo, SetInfo
from gradscore.run.layout import BLOCKS

FOLDS = 5
FEWEST_CLASSES = 4
"""A head of fewer classes has none to spare."""
FEWEST_IMAGES = 10
"""A fold with fewer images on either side says nothing."""
SEED = 0
ROWS = 4096

Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class Holdout:
    """One fold.

    Attributes:
        dropped: Class numbers that the head lacks, ascending.
        kept: Class numbers that it keeps, ascending.
    """

    dropped: NDArray[np.int64]
    kept: NDArray[np.int64]


def holdouts(classes: int) -> list[Holdout]:
    """Return the folds: each class is dropped once, in an order drawn from a fixed seed.

    Args:
        classes: Number of the head's classes; fewer than :data:`FEWEST_CLASSES` have no fold.
    """
    if classes < FEWEST_CLASSES:
        return []
    order = np.random.default_rng(SEED).permutation(classes)
    folds = min(FOLDS, classes // 2)
    held = [np.sort(order[fold::folds]) for fold in range(folds)]
    return [Holdout(dropped, np.setdiff1d(np.arange(classes), dropped)) for dropped in held]


class HeldOutRun:
    """A run as if its model's last layer lacked some classes.

    Methods learn without the inputs that the whole head predicts as one of these. What needs
    another forward or a gradient is not recorded.

    Args:
        run: The run.
        fold: Which classes are lacking.
    """

    def __init__(self, run: RecordedRun, fold: Holdout) -> None:
        self._run, self._fold = run, fold
        passes = {BLOCKS: run.info.passes[BLOCKS]} if BLOCKS in run.info.passes else {}
        self.path: Path = run.path
        self.model: Any = run.model
        self.info = replace(run.info, classes=len(fold.kept), passes=passes, fits={})
        self._fits: dict[str, Arrays] = {}
        self._number = np.full(run.info.classes, -1)
        self._number[fold.kept] = np.arange(len(fold.kept))

    @property
    def sets(self) -> Mapping[str, SetInfo]:
        """The recorded sets by name."""
        return self._run.sets

    def find_norms(self, *asked: Any) -> PassInfo:
        """Raise: the recorded norms are those of the whole head.

        Raises:
            NotRecorded: Always.
        """
        raise NotRecorded("The run holds no gradient norms of a head that lacks classes.")

    def head(self) -> Arrays:
        """Return the last layer's ``weight`` and, if it has one, ``bias``, of the kept classes."""
        return {name: values[self._fold.kept] for name, values in self._run.head().items()}

    def read_fit(self, name: str) -> Arrays | None:
        """Return what a method learned, or None where it was not kept."""
        return self._fits.get(name)

    def keep_fit(self, entry: FitInfo, arrays: Mapping[str, NDArray]) -> None:
        """Keep what a method learned as long as this object: it is for one choice."""
        self._fits[entry.name] = dict(arrays)

    def require_complete(self, set_name: str, passes: Sequence[str] = ("base",)) -> SetInfo:
        """Return a set's entry, or raise NotRecorded unless those passes are finished."""
        return self._run.require_complete(set_name, passes)

    def blocks(
        self,
        set_name: str,
        fields: Sequence[str] = ("index",),
        norms: Sequence[str] = (),
        rows: int = ROWS,
    ) -> Iterator[Arrays]:
        """Yield a set in index order, its logits and labels those of the kept classes."""
        for arrays in self._run.blocks(set_name, fields, norms, rows):
            yield self._reduced(arrays)

    def fit_blocks(
        self, set_name: str, fields: Sequence[str] = ("index",), norms: Sequence[str] = ()
    ) -> Iterator[Arrays]:
        """Yield the rows of a set that the whole head predicts as a kept class."""
        read = dict.fromkeys((*fields, "logits"))
        for arrays in self._run.blocks(set_name, tuple(read), norms, ROWS):
            known = ~np.isin(arrays["logits"].argmax(axis=1), self._fold.dropped)
            yield self._reduced({name: values[known] for name, values in arrays.items()})

    def _reduced(self, arrays: Arrays) -> Arrays:
        reduced = dict(arrays)
        if "logits" in arrays:
            reduced["logits"] = arrays["logits"][:, self._fold.kept]
        if "label" in arrays:
            label = arrays["label"]
            known = (label >= 0) & (label < len(self._number))
            reduced["label"] = np.where(known, self._number[np.where(known, label, 0)], -1)
        return reduced
