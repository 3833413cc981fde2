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

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.metrics import PART, checked, sorted_metrics

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
        Of the ID and of the OOD inputs in ascending order of their scores, shapes ``[4, n]`` and
        ``[4, m]``, first axis as :data:`~gradscore.choices.METRICS`; each row has a mean of 0.

    Raises:
        InvalidArgument: If either side is empty, not a vector, or holds a non-finite score.
    """
    sides = np.sort(checked(id_scores, "ID")), np.sort(checked(ood_scores, "OOD"))
    on_ids, on_oods = zip(*(_centred(of(*sides)) for of in _INFLUENCES), strict=True)
    return np.stack(on_ids), np.stack(on_oods)


def large_figures(id_scores: NDArray, ood_scores: Iterable[NDArray]) -> NDArray:
    """Return one score's figures with intervals, shape ``[sets + 1 (mean), 4, 3]``.

    The sets share their ID inputs, so that the influences of these are added before they are
    squared.

    Args:
        id_scores: Scores of the ID inputs, shape ``[n]``.
        ood_scores: Scores of each OOD set's inputs.

    Raises:
        InvalidArgument: If a side is empty, not a vector, or holds a non-finite score.
    """
    # In ascending order each score is looked up beside the one before: among millions, thirty
    # times as fast as in any other.
    ids = np.sort(checked(id_scores, "ID"))
    oods = [np.sort(checked(scores, "OOD")) for scores in ood_scores]
    point = np.array([sorted_metrics(ids, ood) for ood in oods])
    variances = np.empty((len(oods) + 1, len(_INFLUENCES)))
    for metric, of in enumerate(_INFLUENCES):
        of_ids, together = None, 0.0
        for place, ood in enumerate(oods):
            on_ids, on_oods = _centred(of(ids, ood))
            own = on_oods.var() / len(ood)
            del on_oods
            variances[place, metric] = on_ids.var() / len(ids) + own
            of_ids = on_ids if of_ids is None else np.add(of_ids, on_ids, out=of_ids)
            together += own
        mean = np.var(of_ids) / len(ids) + together
        variances[-1, metric] = mean / len(oods) ** 2
        del of_ids, on_ids
    point = np.concatenate([point, point.mean(axis=0, keepdims=True)])
    ends = normal_interval(point, variances)
    return np.concatenate([point[None], ends]).transpose(1, 2, 0)


def normal_interval(point: NDArray, variance: NDArray) -> NDArray[np.float64]:
    """Return 95% intervals of figures, within 0 and 1, shape ``[2, ...]``."""
    half = Z * np.sqrt(variance)
    return np.stack([np.maximum(0.0, point - half), np.minimum(1.0, point + half)])


def _centred(sides: tuple[NDArray, NDArray]) -> tuple[NDArray, NDArray]:
    """Subtract the mean of each side in place; of millions another array counts."""
    for values in sides:
        values -= values.mean()
    return sides


def _of_auroc(ids: NDArray, oods: NDArray) -> tuple[NDArray, NDArray]:
    lost = _wins(oods, ids)
    return _wins(ids, oods), np.negative(lost, out=lost)


def _wins(scores: NDArray, others: NDArray) -> NDArray[np.float64]:
    """Return the share of sorted ``others`` that each score is above; ties count half."""
    wins = np.empty(len(scores))
    for part in _parts(scores):
        below = np.searchsorted(others, scores[part], side="left")
        below += np.searchsorted(others, scores[part], side="right")
        wins[part] = below / (2 * len(others))
    return wins


def _of_fpr95(ids: NDArray, oods: NDArray) -> tuple[NDArray, NDArray]:
    n = len(ids)
    place = n - (95 * n + 99) // 100
    threshold = ids[place]
    half = Z * np.sqrt(0.05 * 0.95 / n)
    ends = [int(np.clip(round(place + sign * half * n), 0, n - 1)) for sign in (-1, 1)]
    below, above = (np.searchsorted(oods, ids[end], side="left") for end in ends)
    # How the share accepted falls as the threshold takes one more share of the ID inputs.
    slope = (above - below) / len(oods) / (2 * half)
    return slope * (ids < threshold), (oods >= threshold).astype(np.float64)


def _of_aupr_in(ids: NDArray, oods: NDArray) -> tuple[NDArray, NDArray]:
    return _of_precision(ids, oods)


def _of_aupr_out(ids: NDArray, oods: NDArray) -> tuple[NDArray, NDArray]:
    on_oods, on_ids = _of_precision(-oods[::-1], -ids[::-1])
    return on_ids[::-1], on_oods[::-1]


def _of_precision(found: NDArray, others: NDArray) -> tuple[NDArray, NDArray]:
    """Return the influences on the average precision of finding ``found`` by high scores."""
    n, m = len(found), len(others)
    share = n / (n + m)
    own, by_found, by_others = np.empty(n), np.zeros(n + 1), np.zeros(n + 1)
    for part in _parts(found):
        at_least = (n - np.searchsorted(found, found[part], side="left")) / n
        wrong = (m - np.searchsorted(others, found[part], side="left")) / m
        total = share * at_least + (1 - share) * wrong
        own[part] = share * at_least / total
        total *= total
        _add_up(by_found, part, share * (1 - share) * wrong / total)
        _add_up(by_others, part, -share * (1 - share) * at_least / total)
    # The mean of a derivative over the inputs that score no higher.
    for part in _parts(found):
        own[part] += by_found[np.searchsorted(found, found[part], side="right")] / n
    del by_found
    on_others = np.empty(m)
    for part in _parts(others):
        on_others[part] = by_others[np.searchsorted(found, others[part], side="right")] / n
    return own, on_others


def _parts(scores: NDArray) -> Iterator[slice]:
    """Yield where to look at some scores at once: what is computed of a part is soon gone."""
    for start in range(0, len(scores), PART):
        yield slice(start, min(start + PART, len(scores)))


def _add_up(sums: NDArray, part: slice, derivative: NDArray) -> None:
    """Write the running sums of a part behind those of the parts before it."""
    derivative[0] += sums[part.start]
    np.cumsum(derivative, out=sums[part.start + 1 : part.stop + 1])


_INFLUENCES = (_of_auroc, _of_fpr95, _of_aupr_in, _of_aupr_out)
"""What computes the influences on each metric, of scores in ascending order."""
