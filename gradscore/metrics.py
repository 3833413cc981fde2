"""How well a score tells ID from OOD inputs, with bootstrap intervals.

ID is the positive class and higher scores mean more ID. Everything is computed from the raw scores
by ranks, exactly: both sides are sorted once, and a replicate of the bootstrap is then a pair of
weight vectors over the sorted values, so that no replicate sorts anything.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.errors import InvalidArgument

METRICS = ("auroc", "fpr95", "aupr_in", "aupr_out")
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
        InvalidArgument: If a side is empty or holds a non-finite score.
    """
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
    for start in range(0, replicates, step):
        part = slice(start, min(start + step, replicates))
        count = part.stop - start
        kept, *swapped = (
            _cumulative_draw(rng, size, count) for rng, size in zip(draws, sizes, strict=True)
        )
        for k, row in enumerate(rankings):
            for j, ranking in enumerate(row):
                result[part, k, j] = ranking.metrics(kept, swapped[j])
    return result


def interval(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the 2.5 and 97.5 percentiles over the first axis, shape ``[2, ...]``."""
    return np.percentile(samples, (2.5, 97.5), axis=0)


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
        self.id_end, first = _ends(ids), ids[_starts(ids)]
        self.ood_at_least = np.searchsorted(oods, first, side="right")
        self.ood_end, first = _ends(oods), oods[_starts(oods)]
        self.id_above = np.searchsorted(ids, first, side="left")
        self.id_at_least = np.searchsorted(ids, first, side="right")

    def metrics(self, id_weights: NDArray, ood_weights: NDArray) -> NDArray[np.float64]:
        """Return the metrics for cumulated weights of the sorted scores.

        Args:
            id_weights: Cumulated weights with a leading zero, shape ``[replicates, n + 1]``.
            ood_weights: The same for OOD, shape ``[replicates, m + 1]``.

        Returns:
            Shape ``[replicates, 4]``.
        """
        n, m = self.n, self.m
        id_kept = id_weights.take(self.id_end, axis=1)
        ood_kept = ood_weights.take(self.ood_at_least, axis=1)
        ood_end = ood_weights.take(self.ood_end, axis=1)
        id_above = id_weights.take(self.id_above, axis=1)
        id_at_least = id_weights.take(self.id_at_least, axis=1)

        ood_mass = np.diff(ood_end, axis=1, prepend=0)
        wins = np.einsum("rk,rk->r", ood_mass, (id_above + id_at_least) * 0.5)
        # 95% of n in whole numbers: 0.95 * n is not exact.
        threshold = (id_kept >= (95 * n + 99) // 100).argmax(axis=1)
        accepted = np.take_along_axis(ood_kept, threshold[:, None], axis=1)[:, 0]
        # From below, a group is reached together with everything of the other side up to it.
        ood_rejected = m - (ood_end - ood_mass)
        return np.stack(
            [
                wins / (n * m),
                accepted / m,
                _average_precision(np.diff(id_kept, axis=1, prepend=0), id_kept, ood_kept, n),
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


def _starts(ordered: NDArray) -> NDArray[np.bool_]:
    return np.concatenate([[True], ordered[1:] != ordered[:-1]])


def _ends(ordered: NDArray) -> NDArray[np.intp]:
    """Return how many values stand up to the end of each group of equal ones."""
    return np.append(np.flatnonzero(_starts(ordered))[1:], len(ordered))
