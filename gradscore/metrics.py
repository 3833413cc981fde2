"""How well a score tells ID from OOD inputs, with bootstrap intervals.

ID is the positive class and higher scores mean more ID. Everything is computed from the raw scores
by ranks, exactly: both sides are sorted once, and a replicate of the bootstrap is then a pair of
weight vectors over the sorted values, so that no replicate sorts anything.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.choices import METRICS
from gradscore.errors import InvalidArgument

REPLICATES = 1000
BLOCK_ENTRIES = 1 << 16
"""Weights held at once while resampling; larger blocks leave the cache and are slower."""


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
    """Return all of :data:`METRICS` in their order, shape ``[4]``.

    Raises:
        InvalidArgument: If either side is empty, not a vector, or holds a non-finite score.
    """
    ranking = _Ranking(checked(id_scores, "ID"), checked(ood_scores, "OOD"))
    every = (np.arange(size + 1)[None] for size in (ranking.n, ranking.m))
    return ranking.metrics(*every)[0]


def bootstrap(
    id_scores: ArrayLike,
    ood_scores: Sequence[ArrayLike],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the metrics of resampled inputs, for several scores and OOD sets at once.

    Each replicate draws as many inputs as there are, with replacement: ID once for all OOD sets,
    and each OOD set apart. The draws depend on nothing but the sizes, the set's place and
    ``seed``.

    Args:
        id_scores: Scores of the ID inputs, shape ``[scores, n]`` (or ``[n]`` for one score).
        ood_scores: For each OOD set its scores, shape ``[scores, m]`` (or ``[m]``).
        replicates: How often to resample.
        seed: Seed of the draws.

    Returns:
        Fractions, shape ``[replicates, scores, sets, 4]``, last axis as :data:`METRICS`.

    Raises:
        InvalidArgument: If a side is empty or holds a non-finite score, or there are no
            replicates.
    """
    if replicates < 1:
        raise InvalidArgument(f"Expected at least one replicate, got {replicates}.")
    id_rows = np.atleast_2d(np.asarray(id_scores))
    ood_rows = [np.atleast_2d(np.asarray(scores)) for scores in ood_scores]
    rankings = [
        [_Ranking(checked(row, "ID"), checked(ood[k], "OOD")) for ood in ood_rows]
        for k, row in enumerate(id_rows)
    ]
    sizes = [id_rows.shape[1], *(ood.shape[1] for ood in ood_rows)]
    draws = [np.random.default_rng([seed, place]) for place in range(len(sizes))]
    step = max(1, BLOCK_ENTRIES // max(sizes))
    result = np.empty((replicates, len(id_rows), len(ood_rows), len(METRICS)))
    # NumPy lets other threads run while it computes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, replicates, step):
            part = slice(start, min(start + step, replicates))
            kept, *swapped = (
                _cumulative_draw(rng, size, part.stop - start)
                for rng, size in zip(draws, sizes, strict=True)
            )
            resample = partial(_resampled, kept=kept, swapped=swapped)
            result[part] = np.stack(list(pool.map(resample, rankings)), axis=1)
    return result


def _resampled(
    rankings: Sequence["_Ranking"], kept: NDArray, swapped: Sequence[NDArray]
) -> NDArray[np.float64]:
    """Return one score's metrics on each set under drawn weights, ``[replicates, sets, 4]``."""
    each = zip(rankings, swapped, strict=True)
    return np.stack([ranking.metrics(kept, weights) for ranking, weights in each], axis=1)


def interval(point: ArrayLike, samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a 95% interval of each figure: percentiles of its replicates, and the figure itself.

    Drawing with replacement makes ties, which move some metrics of small sets one way: the
    percentiles alone can then lie beside the figure that they are of.

    Args:
        point: The figures, shape ``[...]``.
        samples: Their replicates, shape ``[replicates, ...]``.

    Returns:
        Lower and upper ends, shape ``[2, ...]``.
    """
    low, high = np.percentile(samples, (2.5, 97.5), axis=0)
    return np.stack([np.minimum(low, point), np.maximum(high, point)])


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


class _Ranking:
    """Where each side's distinct scores stand among the other's, highest first."""

    def __init__(self, id_scores: NDArray, ood_scores: NDArray) -> None:
        self.n, self.m = len(id_scores), len(ood_scores)
        # Negated, so that "at least v" is a prefix of the sorted scores.
        ids, oods = np.sort(-id_scores), np.sort(-ood_scores)
        self.id_ends, first = _groups(ids)
        self.ood_at_least = np.searchsorted(oods, first, side="right")
        self.ood_ends, first = _groups(oods)
        self.id_above = np.searchsorted(ids, first, side="left")
        self.id_at_least = np.searchsorted(ids, first, side="right")
        if np.array_equal(self.id_above, self.id_at_least):
            self.id_at_least = self.id_above

    def metrics(self, id_weights: NDArray, ood_weights: NDArray) -> NDArray[np.float64]:
        """Return the metrics for cumulated weights of the sorted scores.

        Args:
            id_weights: Cumulated weights with a leading zero, shape ``[replicates, n + 1]``.
            ood_weights: The same for OOD, shape ``[replicates, m + 1]``.

        Returns:
            Shape ``[replicates, 4]``.
        """
        n, m = self.n, self.m
        id_ends, ood_ends = _at(id_weights, self.id_ends), _at(ood_weights, self.ood_ends)
        id_kept, id_mass, ood_mass = id_ends[:, 1:], np.diff(id_ends), np.diff(ood_ends)
        ood_kept = ood_weights.take(self.ood_at_least, axis=1)
        id_above = id_at_least = id_weights.take(self.id_above, axis=1)
        if self.id_at_least is not self.id_above:
            id_at_least = id_weights.take(self.id_at_least, axis=1)

        wins = np.einsum("rk,rk->r", ood_mass, (id_above + id_at_least) * 0.5)
        # 95% of n in whole numbers: 0.95 * n is not exact.
        threshold = (id_kept >= (95 * n + 99) // 100).argmax(axis=1)
        accepted = np.take_along_axis(ood_kept, threshold[:, None], axis=1)[:, 0]
        # From below, a group is reached together with everything of the other side up to it.
        ood_rejected = m - ood_ends[:, :-1]
        return np.stack(
            [
                wins / (n * m),
                accepted / m,
                _average_precision(id_mass, id_kept, ood_kept, n),
                _average_precision(ood_mass, ood_rejected, n - id_above, m),
            ],
            axis=1,
        )


def _average_precision(
    mass: NDArray, found: NDArray, wrong: NDArray, total: int
) -> NDArray[np.float64]:
    """Return ``sum of recall steps x precision``; a group without weight adds nothing."""
    precision = found / np.maximum(found + wrong, 1)
    return np.einsum("rk,rk->r", mass, precision) / total


def _cumulative_draw(rng: np.random.Generator, size: int, count: int) -> NDArray[np.int32]:
    """Return how often each of ``size`` inputs is drawn, cumulated, ``[count, size + 1]``."""
    drawn = rng.integers(size, size=(count, size))
    drawn += np.arange(1, count * (size + 1), size + 1)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=count * (size + 1))
    return np.cumsum(counts.reshape(count, size + 1), axis=1, dtype=np.int32)


def _groups(ordered: NDArray) -> tuple[NDArray[np.intp] | None, NDArray]:
    """Return where groups of equal values end, after a zero, and each group's value.

    The ends are None where all values differ: each value is then its own group.
    """
    differ = ordered[1:] != ordered[:-1]
    if differ.all():
        return None, ordered
    ends = np.concatenate([[0], np.flatnonzero(differ) + 1, [len(ordered)]])
    return ends, ordered[ends[:-1]]


def _at(weights: NDArray, ends: NDArray[np.intp] | None) -> NDArray:
    return weights if ends is None else weights.take(ends, axis=1)
