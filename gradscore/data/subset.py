"""Some images of a set: spread over its classes, the same ones every time."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradscore.data.labels import UNKNOWN
from gradscore.data.readers import Picture, Reader

SEED = 0


class Chosen:
    """Reads some of another reader's images, in an order of their own."""

    def __init__(self, reader: Reader, places: NDArray[np.int64]) -> None:
        self.reader, self.places = reader, places

    def read(self, place: int) -> Picture:
        """Return one of the chosen images."""
        return self.reader.read(int(self.places[place]))


def choose(
    paths: Sequence[str], labels: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.int64], str]:
    """Return the places of ``limit`` images, and a notice about how they were chosen.

    They are spread over the classes, or over the folders where no label is known, by a fixed seed.
    Fewer images are always the first ones of more. Images of one class or folder are taken in
    their order.

    Args:
        paths: Names of the set's images.
        labels: Their labels, -1 unknown.
        limit: How many to choose, fewer than there are.
    """
    known = labels != UNKNOWN
    groups, what = (labels, "classes") if known.any() else (_folders(paths), "folders")
    number = len(np.unique(groups[known] if known.any() else groups))
    order = spread(groups) if number > 1 else np.arange(len(paths))
    order = np.concatenate([order[known[order]], order[~known[order]]])
    notice = f"spread over {number:,} {what} by a fixed seed" if number > 1 else "the first ones"
    return order[:limit], notice


def _folders(paths: Sequence[str]) -> NDArray[np.int64]:
    numbers: dict[str, int] = {}
    folders = (path.rpartition("/")[0] for path in paths)
    return np.array([numbers.setdefault(folder, len(numbers)) for folder in folders])


def spread(groups: NDArray) -> NDArray[np.int64]:
    """Return all places in an order whose every beginning holds the groups in equal shares.

    Both the groups' turns and the order within each are drawn from a fixed seed.

    >>> groups = np.array([5, 5, 5, 5, 7, 7])
    >>> groups[spread(groups)].tolist()
    [7, 5, 7, 5, 5, 5]
    """
    rng = np.random.default_rng(SEED)
    shuffled = rng.permutation(len(groups))
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    turns = rng.permutation(len(counts))
    by_group = shuffled[np.argsort(group[shuffled], kind="stable")]
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    round_of = np.empty(len(groups), np.int64)
    round_of[by_group] = np.arange(len(groups)) - starts
    return np.lexsort((turns[group], round_of))
