"""Bootstrap intervals of the metrics, without sorting anything twice.

Both sides are sorted once. A replicate is then a pair of weight vectors over the sorted values.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.errors import InvalidArgument
from gradscore.metrics import checked

REPLICATES = 1000
BLOCK_ENTRIES = 1 << 16
"""Weights held at once while resampling; larger blocks leave the cache and are slower."""


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
        Fractions, shape ``[replicates, scores, sets, 4]``, last axis as
        :data:`~gradscore.choices.METRICS`.

    Raises:
        InvalidArgument: If a side is empty or holds a non-finite score, or there are no
            replicates.
    """
    return _replicates(_Ranking.metrics, id_scores, ood_scores, replicates, seed)


def bootstrap_aurocs(
    id_scores: ArrayLike,
    ood_scores: Sequence[ArrayLike],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the AUROCs of :func:`bootstrap` alone, in a fraction of its time.

    Returns:
        Fractions, shape ``[replicates, scores, sets]``.

    Raises:
        InvalidArgument: As there.
    """
    return _replicates(_Ranking.aurocs, id_scores, ood_scores, replicates, seed)


def _replicates(
    figures: Callable[["_Ranking", NDArray, NDArray], NDArray],
    id_scores: ArrayLike,
    ood_scores: Sequence[ArrayLike],
    replicates: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return some figures of resampled inputs, shape ``[replicates, scores, sets, ...]``."""
    if replicates < 1:
        raise InvalidArgument(f"Expected at least one replicate, got {replicates}.")
    id_rows, *ood_rows = map(_rows, (id_scores, *ood_scores))
    rankings = [
        [_Ranking(checked(row, "ID"), checked(ood[k], "OOD")) for ood in ood_rows]
        for k, row in enumerate(id_rows)
    ]
    sizes = [len(rows[0]) for rows in (id_rows, *ood_rows)]
    draws = [np.random.default_rng([seed, place]) for place in range(len(sizes))]
    step = max(1, BLOCK_ENTRIES // max(sizes))
    parts = []
    # NumPy lets other threads run while it computes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, replicates, step):
            count = min(step, replicates - start)
            kept, *swapped = (
                _cumulative_draw(rng, size, count) for rng, size in zip(draws, sizes, strict=True)
            )
            resample = partial(_resampled, figures, kept=kept, swapped=swapped)
            parts.append(np.stack(list(pool.map(resample, rankings)), axis=1))
    return np.concatenate(parts)


def _rows(scores: ArrayLike) -> Sequence[NDArray]:
    """Return each score's values; those of a list are not copied."""
    if isinstance(scores, list) and all(
        isinstance(row, np.ndarray) and row.ndim for row in scores
    ):
        return scores
    return np.atleast_2d(np.asarray(scores))


def _resampled(
    figures: Callable[["_Ranking", NDArray, NDArray], NDArray],
    rankings: Sequence["_Ranking"],
    kept: NDArray,
    swapped: Sequence[NDArray],
) -> NDArray[np.float64]:
    """Return one score's figures on each set under drawn weights, ``[replicates, sets, ...]``."""
    each = zip(rankings, swapped, strict=True)
    return np.stack([figures(ranking, kept, weights) for ranking, weights in each], axis=1)


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


class _Ranking:
    """Where each side's distinct scores stand among the other's, highest first."""

    def __init__(self, id_scores: NDArray, ood_scores: NDArray) -> None:
        self.n, self.m = len(id_scores), len(ood_scores)
        # Negated, so that "at least v" is a prefix of the sorted scores.
        ids, oods = np.sort(-id_scores), np.sort(-ood_scores)
        self.id_ends, first = _groups(ids)
        self.ood_at_least = _places(oods, first, "right")
        self.ood_ends, first = _groups(oods)
        self.id_above = _places(ids, first, "left")
        self.id_at_least = _places(ids, first, "right")
        if np.array_equal(self.id_above, self.id_at_least):
            self.id_at_least = self.id_above

    def aurocs(self, id_weights: NDArray, ood_weights: NDArray) -> NDArray[np.float64]:
        """Return the AUROCs for cumulated weights of the sorted scores.

        Args:
            id_weights: Cumulated weights with a leading zero, shape ``[replicates, n + 1]``.
            ood_weights: The same for OOD, shape ``[replicates, m + 1]``.

        Returns:
            Shape ``[replicates]``.
        """
        id_above = id_weights.take(self.id_above, axis=1)
        return self._aurocs(id_weights, id_above, np.diff(_at(ood_weights, self.ood_ends)))

    def _aurocs(self, id_weights: NDArray, id_above: NDArray, ood_mass: NDArray) -> NDArray:
        id_at_least = id_above
        if self.id_at_least is not self.id_above:
            id_at_least = id_weights.take(self.id_at_least, axis=1)
        # Halves of whole numbers: their sum is exact in any order.
        wins = np.einsum("rk,rk->r", ood_mass, (id_above + id_at_least) * 0.5)
        return wins / (self.n * self.m)

    def metrics(self, id_weights: NDArray, ood_weights: NDArray) -> NDArray[np.float64]:
        """Return the metrics for weights as :meth:`aurocs` takes them, ``[replicates, 4]``."""
        n, m = self.n, self.m
        id_ends, ood_ends = _at(id_weights, self.id_ends), _at(ood_weights, self.ood_ends)
        id_kept, id_mass, ood_mass = id_ends[:, 1:], np.diff(id_ends), np.diff(ood_ends)
        ood_kept = ood_weights.take(self.ood_at_least, axis=1)
        id_above = id_weights.take(self.id_above, axis=1)
        # 95% of n in whole numbers: 0.95 * n is not exact.
        threshold = (id_kept >= (95 * n + 99) // 100).argmax(axis=1)
        accepted = np.take_along_axis(ood_kept, threshold[:, None], axis=1)[:, 0]
        # From below, a group is reached together with everything of the other side up to it.
        ood_rejected = m - ood_ends[:, :-1]
        return np.stack(
            [
                self._aurocs(id_weights, id_above, ood_mass),
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


def _places(ordered: NDArray, values: NDArray, side: str) -> NDArray[np.int32]:
    """Return where values stand in a sorted side, in half the memory of NumPy's own answer."""
    return np.searchsorted(ordered, values, side=side).astype(np.int32)


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
