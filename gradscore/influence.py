"""95% intervals of the metrics of large sets, from what each input adds to a figure.

Resampling a million rows a thousand times takes hours, and tells what a formula tells as well.
Each metric is a function of two samples; its derivative in the direction of one input is that
input's influence, and the variance of the figure is that of the influences over their number, on
either side. For AUROC this is DeLong's interval (DeLong, DeLong & Clarke-Pearson, Biometrics
1988). For average precision the derivative follows from ``AP = E[p F / (p F + (1 - p) G)]`` over
the inputs that are to be found, F and G being the shares of either side at or above their scores
and p their share of all inputs. For FPR95 the threshold is itself a quantile of the ID scores; its
part comes from the order statistics around it (Woodruff, JASA 1952), that of the OOD inputs is
binomial.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.metrics import checked, point_metrics

LARGEST_RESAMPLED = 200_000
"""Rows of a set up to which intervals are those of the bootstrap."""
NAME = "DeLong for AUROC, delta method for AUPR, order statistics for FPR95"
"""What the intervals of larger sets are, as outputs name them."""
Z = 1.959963984540054
"""Of a normal distribution 95% lie within so many deviations."""


def is_large(*rows: int) -> bool:
    """Return whether one of several sets has too many rows to be resampled."""
    return max(rows) > LARGEST_RESAMPLED


def influences(
    id_scores: ArrayLike, ood_scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what each input adds to the metrics, to first order.

    Args:
        id_scores: Scores of ID inputs, higher = more ID, shape ``[n]``.
        ood_scores: Scores of OOD inputs, shape ``[m]``.

    Returns:
        Of the ID and of the OOD inputs in the order given, shapes ``[4, n]`` and ``[4, m]``, first
        axis as :data:`~gradscore.metrics.METRICS`; each row has a mean of 0.

    Raises:
        InvalidArgument: If either side is empty, not a vector, or holds a non-finite score.
    """
    ids, oods = checked(id_scores, "ID"), checked(ood_scores, "OOD")
    on_ids, on_oods = np.empty((4, len(ids))), np.empty((4, len(oods)))
    sorted_ids, sorted_oods = np.sort(ids), np.sort(oods)
    on_ids[0] = _wins(ids, sorted_oods)
    on_oods[0] = -_wins(oods, sorted_ids)
    on_ids[1], on_oods[1] = _of_fpr95(ids, oods, sorted_ids, sorted_oods)
    on_ids[2], on_oods[2] = _of_precision(ids, oods, sorted_ids, sorted_oods)
    on_oods[3], on_ids[3] = _of_precision(-oods, -ids, -sorted_oods[::-1], -sorted_ids[::-1])
    for rows in (on_ids, on_oods):
        rows -= rows.mean(axis=1, keepdims=True)
    return on_ids, on_oods


def large_figures(id_scores: NDArray, ood_scores: Sequence[NDArray]) -> NDArray:
    """Return one score's figures with intervals, shape ``[sets + 1 (mean), 4, 3]``.

    The sets share their ID inputs, so that the influences of these are added before they are
    squared.

    Args:
        id_scores: Scores of the ID inputs, shape ``[n]``.
        ood_scores: Scores of each OOD set's inputs.

    Raises:
        InvalidArgument: If a side is empty, not a vector, or holds a non-finite score.
    """
    point = np.array([point_metrics(id_scores, ood) for ood in ood_scores])
    of_ids, variances, together = 0.0, [], 0.0
    for ood in ood_scores:
        on_ids, on_oods = influences(id_scores, ood)
        own = on_oods.var(axis=1) / len(ood)
        variances.append(on_ids.var(axis=1) / len(id_scores) + own)
        of_ids, together = of_ids + on_ids, together + own
    mean = of_ids.var(axis=1) / len(id_scores) + together
    point = np.concatenate([point, point.mean(axis=0, keepdims=True)])
    ends = normal_interval(point, np.array([*variances, mean / len(ood_scores) ** 2]))
    return np.concatenate([point[None], ends]).transpose(1, 2, 0)


def normal_interval(point: NDArray, variance: NDArray) -> NDArray[np.float64]:
    """Return 95% intervals of figures, within 0 and 1, shape ``[2, ...]``."""
    half = Z * np.sqrt(variance)
    return np.stack([np.maximum(0.0, point - half), np.minimum(1.0, point + half)])


def _wins(scores: NDArray, others: NDArray) -> NDArray[np.float64]:
    """Return the share of sorted ``others`` that each score is above; ties count half."""
    below = np.searchsorted(others, scores, side="left")
    return (below + np.searchsorted(others, scores, side="right")) / (2 * len(others))


def _of_fpr95(
    ids: NDArray, oods: NDArray, sorted_ids: NDArray, sorted_oods: NDArray
) -> tuple[NDArray, NDArray]:
    n = len(ids)
    place = n - (95 * n + 99) // 100
    threshold = sorted_ids[place]
    half = Z * np.sqrt(0.05 * 0.95 / n)
    ends = [int(np.clip(round(place + sign * half * n), 0, n - 1)) for sign in (-1, 1)]
    below, above = (np.searchsorted(sorted_oods, sorted_ids[end], side="left") for end in ends)
    # How the share accepted falls as the threshold takes one more share of the ID inputs.
    slope = (above - below) / len(oods) / (2 * half)
    return slope * (ids < threshold), (oods >= threshold).astype(np.float64)


def _of_precision(
    found: NDArray, others: NDArray, sorted_found: NDArray, sorted_others: NDArray
) -> tuple[NDArray, NDArray]:
    """Return the influences on the average precision of finding ``found`` by high scores."""
    n, m = len(found), len(others)
    share = n / (n + m)
    at_least = (n - np.searchsorted(sorted_found, sorted_found, side="left")) / n
    wrong = (m - np.searchsorted(sorted_others, sorted_found, side="left")) / m
    total = share * at_least + (1 - share) * wrong
    precision = share * at_least / total
    by_found = _before(share * (1 - share) * wrong / total**2)
    by_others = _before(-share * (1 - share) * at_least / total**2)
    places = np.searchsorted(sorted_found, found, side="right")
    own = precision[np.searchsorted(sorted_found, found, side="left")] + by_found[places]
    return own, by_others[np.searchsorted(sorted_found, others, side="right")]


def _before(derivative: NDArray) -> NDArray:
    """Return the mean of a derivative over the inputs that score no higher, ``[n + 1]``."""
    return np.concatenate([[0.0], np.cumsum(derivative)]) / len(derivative)
