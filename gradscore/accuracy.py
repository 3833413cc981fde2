"""How many of a set's labelled images a model predicts right, and whether guessing would do."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

import numpy as np

from gradscore.escapes import counted
from gradscore.methods import RecordedRun
from gradscore.run import RunInfo
from gradscore.scoring import Scores

MANY_LABELLED = 30
"""Of so many labelled images an accuracy that guessing reaches is called chance without more."""
CHANCE_LEVEL = 0.01
"""An accuracy that guessing reaches more often than this is chance."""
HALF_RIGHT_LEVEL = 0.05
"""Of fewer images also a model that is right half the time must reach no more less often."""


class Accuracy(NamedTuple):
    """How many of a set's images have a label, and how many of these are predicted right."""

    right: int
    labelled: int
    images: int

    @property
    def share(self) -> float | None:
        """The share of labelled images predicted right, or None where none is labelled."""
        return self.right / self.labelled if self.labelled else None

    def __str__(self) -> str:
        """Return the figure and which images it is of, as everything that says it does."""
        if not self.labelled:
            return "unknown: no image has a label"
        of = counted(self.labelled, "labelled image")
        beside = f" ({self.images:,} in all)" if self.labelled < self.images else ""
        return f"{percent(tenths(self.right, self.labelled))} of {of}{beside}"

    def is_chance(self, classes: int) -> bool:
        """Say whether guessing among ``classes`` would do as well: a one-sided binomial test.

        Of few labelled images a good model may have as few right by bad luck: these say so only
        where a model that is right half the time hardly would.
        """
        from scipy.stats import binom

        if not self.labelled or classes < 2:
            return False
        right, n = self.right, self.labelled
        if n < MANY_LABELLED and binom.cdf(right, n, 0.5) > HALF_RIGHT_LEVEL:
            return False
        return bool(binom.sf(right - 1, n, 1 / classes) > CHANCE_LEVEL)


def chance_accuracies(store: RecordedRun, sets: Iterable[str]) -> dict[str, Accuracy]:
    """Return the accuracy of each ID set among ``sets`` where it is no better than guessing.

    A set is read no further than to the row where its accuracy can no longer be chance.
    """
    found, classes = {}, store.info.classes
    for name in sorted(store.sets.keys() & set(sets)):
        if store.sets[name].role != "id":
            continue
        rows = store.sets[name].recorded()
        figure = Accuracy(0, 0, rows)
        for figure in _growing(store, name):
            if not Accuracy(figure.right, rows, rows).is_chance(classes):
                break
        if figure.is_chance(classes):
            found[name] = figure
    return found


def read_accuracy(store: RecordedRun, name: str) -> Accuracy:
    """Return the accuracy over all recorded images of a set."""
    none = Accuracy(0, 0, store.sets[name].recorded())
    return [none, *_growing(store, name)][-1]


def _growing(store: RecordedRun, name: str) -> Iterator[Accuracy]:
    """Yield the accuracy of a set's images read so far, block by block."""
    right = labelled = 0
    with closing(store.blocks(name, fields=("logits", "label"))) as blocks:
        for block in blocks:
            label = np.asarray(block["label"])
            labelled += int((label >= 0).sum())
            right += int((np.asarray(block["logits"]).argmax(axis=1) == label).sum())
            yield Accuracy(right, labelled, store.sets[name].recorded())


def chance_cause(about: RunInfo) -> str:
    """Return why the accuracy of a run's model may be no better than guessing."""
    if about.weights == "random":
        return "the weights are random"
    if about.weights is None and about.model.startswith("python:"):
        return (
            "the model is probably untrained, as its weights are those that its factory gives; "
            "or the labels' numbering or the preprocessing do not belong to it"
        )
    return "the weights, the labels' numbering or the preprocessing do not belong to this model"


def accuracy(scores: Scores) -> Accuracy:
    """Return how many inputs have a label, and how many of these are predicted right."""
    known = scores.label >= 0
    right = (scores.predicted == scores.label) & known
    return Accuracy(int(right.sum()), int(known.sum()), len(known))


def tenths(part: int, whole: int) -> int:
    """Return a share in tenths of a percent, halves up: exact, so that all say the same.

    >>> tenths(1, 3), tenths(49, 400), tenths(0, 5)
    (333, 123, 0)
    """
    return (2000 * part + whole) // (2 * whole)


def percent(tenth: int) -> str:
    """Return tenths of a percent as text.

    >>> percent(952)
    '95.2%'
    """
    return f"{tenth // 10}.{tenth % 10}%"
