"""How well a score tells ID from OOD inputs.

ID is the positive class and higher scores mean more ID. Everything is computed from the raw scores
by ranks, exactly. Sorted scores are counted part by part: among tens of millions the counts of all
of them would take ten times the memory of the scores.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.errors import InvalidArgument

PART = 1 << 14
"""Scores of a side that are counted at once."""


def auroc(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Return the probability that an ID input scores above an OOD one; ties count half.

    Args:
        id_scores: Scores of ID inputs, shape ``[n]``.
        ood_scores: Scores of OOD inputs, shape ``[m]``.

    Returns:
        A fraction; 0.5 is chance.

    Raises:
        InvalidArgument: If either side is empty, not a vector, or holds a non-finite score.
    """
    return float(point_metrics(id_scores, ood_scores)[0])


def fpr95(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Return the share of OOD inputs accepted where at least 95% of the ID inputs are.

    The threshold is the largest that accepts (``score >= threshold``) at least 95% of the ID
    inputs. The authors' code takes the point *nearest* to 95%; on ties the two can differ.

    Args:
        id_scores: Scores of ID inputs, shape ``[n]``.
        ood_scores: Scores of OOD inputs, shape ``[m]``.

    Returns:
        A fraction; lower is better.

    Raises:
        InvalidArgument: If either side is empty, not a vector, or holds a non-finite score.
    """
    return float(point_metrics(id_scores, ood_scores)[1])


def aupr_in(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Return the average precision of finding ID inputs by high scores.

    Args:
        id_scores: Scores of ID inputs, shape ``[n]``.
        ood_scores: Scores of OOD inputs, shape ``[m]``.

    Returns:
        A fraction; chance is the ID share ``n / (n + m)``.

    Raises:
        InvalidArgument: If either side is empty, not a vector, or holds a non-finite score.
    """
    return float(point_metrics(id_scores, ood_scores)[2])


def aupr_out(id_scores: ArrayLike, ood_scores: ArrayLike) -> float:
    """Return the average precision of finding OOD inputs by low scores.

    Args:
        id_scores: Scores of ID inputs, shape ``[n]``.
        ood_scores: Scores of OOD inputs, shape ``[m]``.

    Returns:
        A fraction; chance is the OOD share ``m / (n + m)``.

    Raises:
        InvalidArgument: If either side is empty, not a vector, or holds a non-finite score.
    """
    return float(point_metrics(id_scores, ood_scores)[3])


def keeping_threshold(scores: ArrayLike, share: int = 95) -> float:
    """Return the largest threshold that accepts (``score >= threshold``) a share of some scores.

    Args:
        scores: Shape ``[n]``.
        share: In percent, at least 1.

    Raises:
        InvalidArgument: If there are no scores, or one is not finite.

    >>> keeping_threshold(range(100)), keeping_threshold([2.0, 1.0], 50)
    (5.0, 2.0)
    """
    ordered = np.sort(checked(scores, "ID"))
    # In whole numbers: 0.95 * n is not exact.
    return float(ordered[len(ordered) - -(-share * len(ordered) // 100)])


def point_metrics(id_scores: ArrayLike, ood_scores: ArrayLike) -> NDArray[np.float64]:
    """Return all of :data:`~gradscore.choices.METRICS` in their order, shape ``[4]``.

    Raises:
        InvalidArgument: If either side is empty, not a vector, or holds a non-finite score.
    """
    return sorted_metrics(np.sort(checked(id_scores, "ID")), np.sort(checked(ood_scores, "OOD")))


def sorted_metrics(ids: NDArray, oods: NDArray) -> NDArray[np.float64]:
    """Return the metrics of finite scores in ascending order, as :func:`point_metrics`.

    Beside the scores it holds 16 bytes a score of one side.

    Args:
        ids: Scores of ID inputs, shape ``[n]``.
        oods: Scores of OOD inputs, shape ``[m]``.
    """
    n, m = len(ids), len(oods)
    # 95% of n in whole numbers: 0.95 * n is not exact.
    threshold = ids[n - (95 * n + 99) // 100]
    accepted = m - int(np.searchsorted(oods, threshold, side="left"))
    steps = _Steps(ids)
    for start, mass, below, _ in _groups(ids, oods):
        steps.add(mass, n - start, m - below)
    aupr_in = steps.average_precision()
    del steps  # before the next ones take as much
    steps, wins = _Steps(oods), 0
    for start, mass, below, upto in _groups(oods, ids):
        # From below, a group is reached together with everything of the other side up to it.
        steps.add(mass, start + mass, upto)
        wins += int((mass * (2 * n - below - upto)).sum())
    return np.array([wins / 2 / (n * m), accepted / m, aupr_in, steps.average_precision()])


class _Steps:
    """The steps of recall, a group of equal scores each, as its inputs are found.

    Args:
        scores: Those that shall be found, in ascending order.
    """

    def __init__(self, scores: NDArray) -> None:
        count = 1 + int(np.count_nonzero(scores[1:] != scores[:-1]))
        self._total, self._done = len(scores), 0
        # Of one row, as in a replicate of the bootstrap: einsum then adds up in the same order.
        self._step, self._precision = np.empty((1, count), np.int64), np.empty((1, count))

    def add(self, mass: NDArray, found: NDArray, wrong: NDArray) -> None:
        """Add groups: their sizes, how many are found with each, and how many others."""
        part = slice(self._done, self._done + len(mass))
        self._step[0, part], self._precision[0, part] = mass, found / (found + wrong)
        self._done = part.stop

    def average_precision(self) -> float:
        """Return the sum of steps times precision."""
        return float(np.einsum("rk,rk->r", self._step, self._precision)[0] / self._total)


def _groups(ordered: NDArray, others: NDArray) -> Iterator[tuple[NDArray[np.intp], ...]]:
    """Yield groups of equal scores, many at once, the highest first.

    Args:
        ordered: Scores of one side in ascending order.
        others: Those of the other side.

    Yields:
        Where each group starts, how many scores it has, how many others lie below it, and how many
        lie below it or are equal.
    """
    for begin in reversed(range(0, len(ordered), PART)):
        part = ordered[begin : begin + PART]
        # A group belongs to the part that it starts in.
        first = np.append(not begin or part[0] != ordered[begin - 1], part[1:] != part[:-1])
        start = np.flatnonzero(first)
        # Looked up in ascending order, each beside the one before.
        values = part[start]
        start += begin
        mass = np.searchsorted(ordered, values, side="right") - start
        below, upto = (np.searchsorted(others, values, side=side) for side in ("left", "right"))
        yield tuple(found[::-1] for found in (start, mass, below, upto))


def checked(scores: ArrayLike, side: str) -> NDArray[np.float64]:
    """Return ``scores`` as a float64 vector.

    Raises:
        InvalidArgument: If it is empty, not a vector, or holds a non-finite score; the message
            names the row.
    """
    detach = getattr(scores, "detach", None)
    values = np.asarray(scores if detach is None else detach().cpu().double(), dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise InvalidArgument(
            f"Expected {side} scores as a non-empty vector, got shape {list(values.shape)}."
        )
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InvalidArgument(f"Expected finite {side} scores, got {values[row]} in row {row}.")
    return values
