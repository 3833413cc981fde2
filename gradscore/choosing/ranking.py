"""Ranks scores by how well each tells ID images from shifted ones, and says which to take.

The value of a score is the mean of its logit AUROCs over the shifts: the plain mean would be
ruled by shifts that every score finds easy. Scores whose values differ by less than the bootstrap
can tell are ties, and the cheapest of them is taken.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import InvalidArgument
from gradscore.metrics import point_metrics
from gradscore.resampling import REPLICATES, bootstrap_aurocs, interval


@dataclass(frozen=True)
class Shift:
    """ID inputs and shifted ones, scored by every score that is compared.

    Attributes:
        name: Of the surrogate, or of the fold of classes.
        id_scores: Shape ``[scores, n]``; higher means more ID.
        shifted_scores: Shape ``[scores, m]``.
    """

    name: str
    id_scores: NDArray[np.float64]
    shifted_scores: NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """What one score is worth.

    Attributes:
        place: Which of the scores it is.
        value: Mean logit AUROC over the shifts, without unit; 0 is chance.
        low: Lower end of its 95% bootstrap interval.
        high: Upper end.
        aurocs: AUROC on each shift by its name, fractions.
        tied: Whether the best score's lead over it is within the bootstrap's spread.
    """

    place: int
    value: float
    low: float
    high: float
    aurocs: dict[str, float]
    tied: bool

    @property
    def auroc(self) -> float:
        """Plain mean of the AUROCs, a fraction."""
        return float(np.mean(list(self.aurocs.values())))


def rank(shifts: Sequence[Shift], *, replicates: int = REPLICATES, seed: int = 0) -> list[Ranked]:
    """Return all scores, the most valuable first.

    Args:
        shifts: The same scores on each, in the same order.
        replicates: Bootstrap replicates.
        seed: Seed of the resampling.

    Raises:
        InvalidArgument: If there is no shift, or a score is not finite.
    """
    if not shifts:
        raise InvalidArgument("Expected at least one shift to rank scores by, got none.")
    point = np.stack([_aurocs(shift) for shift in shifts], axis=1)
    ends = np.array([_least(shift) for shift in shifts])
    values = _logit(point, ends).mean(axis=1)
    drawn = _logit(_resampled(shifts, replicates, seed), ends).mean(axis=2)
    order = np.lexsort((np.arange(len(values)), -values))
    low, high = interval(values, drawn)
    lead = np.percentile(drawn[:, order[:1]] - drawn, 2.5, axis=0)
    names = [shift.name for shift in shifts]
    return [
        Ranked(
            int(place),
            float(values[place]),
            float(low[place]),
            float(high[place]),
            dict(zip(names, point[place].tolist(), strict=True)),
            bool(lead[place] <= 0),
        )
        for place in order
    ]


def recommended(
    ranking: Sequence[Ranked], costs: Mapping[int, float], least: float = -math.inf
) -> Ranked:
    """Return the cheapest of the scores that tie with the best; of equal cost the better.

    Args:
        ranking: What :func:`rank` returned.
        costs: Of each score by its place; only their order counts.
        least: Value that it must have, at most that of the best.
    """
    able = (row for row in ranking if row.tied and row.value >= least)
    return min(able, key=lambda row: costs[row.place])


def _aurocs(shift: Shift) -> NDArray[np.float64]:
    pairs = zip(shift.id_scores, shift.shifted_scores, strict=True)
    return np.array([point_metrics(*pair)[0] for pair in pairs])


def _resampled(shifts: Sequence[Shift], replicates: int, seed: int) -> NDArray[np.float64]:
    """Return resampled AUROCs, shape ``[replicates, scores, shifts]``.

    Shifts of the same ID scores share the draws of ID inputs.
    """
    drawn: list[NDArray] = []
    start = 0
    while start < len(shifts):
        ids = shifts[start].id_scores
        stop = start + 1
        while stop < len(shifts) and shifts[stop].id_scores is ids:
            stop += 1
        together = [shift.shifted_scores for shift in shifts[start:stop]]
        how = {"replicates": replicates, "seed": seed + start}
        drawn.append(bootstrap_aurocs(ids, together, **how))
        start = stop
    return np.concatenate(drawn, axis=2)


def _least(shift: Shift) -> float:
    """Return half the smallest step that the AUROC of two sets of these sizes can take."""
    return 1 / (2 * shift.id_scores.shape[1] * shift.shifted_scores.shape[1])


def _logit(aurocs: NDArray[np.float64], least: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = np.clip(aurocs, least, 1 - least)
    return np.log(inside / (1 - inside))
