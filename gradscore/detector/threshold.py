"""A threshold that keeps a promise, from the scores of clean images alone.

Sort the ``n`` scores of ID images that neither the model nor the score has seen. Let ``s(k)`` be
the ``k``-th smallest. A new image is flagged where ``s < s(k)``. The rank ``k`` is an exact
integer, found from the share ``alpha = 1 - tpr`` of ID images that may be flagged:

- ``pac``: the largest ``k`` with ``P(Beta(k, n + 1 - k) <= alpha) >= confidence``. With that
  confidence over the draw of the ``n`` images, at most ``alpha`` of all ID images are flagged.
- ``marginal``: ``k = floor(alpha (n + 1))``, the split conformal rule. Over all draws, at most
  ``alpha`` are flagged on average.

Both hold for exchangeable images, whatever the distribution of their scores. The comparison is
strict: where scores tie, ``s <= s(k)`` would break the promise.
"""

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from numbers import Rational

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv, betaln, gammaln

from gradscore.choices import GUARANTEES
from gradscore.errors import InvalidArgument

DRIFT = 0.01
"""Clean batches flag so many images, or more, with at most this probability."""
_NEAR = 1e-9
"""Where a float is this close to the confidence, integers decide."""
_MOST_EXACT = 10_000
"""Scores up to which they do. Above, the smaller rank is taken, which keeps the promise too."""
_DIGITS = 30
"""Decimal places of a share."""
_CHUNK = 1 << 12
_REST = 1e-16
"""A tail's part that is no longer summed."""

Share = float | str


@dataclass(frozen=True)
class Threshold:
    """What is flagged, and what that promises.

    Attributes:
        value: Images with ``score < value`` are flagged.
        tpr: Share of ID images that shall be accepted, as it was given.
        guarantee: One of :data:`gradscore.choices.GUARANTEES`.
        confidence: Probability with which ``pac`` holds, as it was given.
        images: Number ``n`` of calibration scores.
        rank: The ``k`` of ``value = s(k)``.
        flagged: How many of the calibration scores lie below ``value``.
        ties: How many of them equal ``value``, itself among them.
    """

    value: float
    tpr: str
    guarantee: str
    confidence: str
    images: int
    rank: int
    flagged: int
    ties: int

    @classmethod
    def of(
        cls,
        scores: ArrayLike,
        tpr: Share = "0.95",
        *,
        guarantee: str = "pac",
        confidence: Share = "0.95",
    ) -> "Threshold":
        """Return the threshold of some scores of ID images.

        >>> Threshold.of(range(1000)).rank, Threshold.of(range(1000), guarantee="marginal").rank
        (39, 50)

        Args:
            scores: Scores of clean images, shape ``[n]``; higher means more ID.
            tpr: Share of ID images that shall be accepted; read as the decimal that it prints as.
            guarantee: ``pac`` or ``marginal``.
            confidence: Probability with which ``pac`` shall hold; read as ``tpr`` is.

        Raises:
            InvalidArgument: If an argument is out of range, a score is not finite, or the scores
                are too few for the promise; the message names the number that would do.
        """
        ordered = sorted_scores(scores)
        rank = flag_rank(len(ordered), tpr, guarantee=guarantee, confidence=confidence)
        value = ordered[rank - 1]
        below, upto = (int(np.searchsorted(ordered, value, side)) for side in ("left", "right"))
        return cls(
            float(value),
            *(str(tpr), guarantee, str(confidence)),
            *(len(ordered), rank, below, upto - below),
        )

    @property
    def alpha(self) -> Fraction:
        """The share of ID images that may be flagged."""
        return 1 - _share(self.tpr, "tpr")

    def promise(self) -> str:
        """Return in words what holds for images that are exchangeable with the calibration's."""
        share = percent(self.alpha)
        if self.guarantee == "marginal":
            return f"on average at most {share} of images like these are flagged"
        sure = percent(_share(self.confidence, "confidence"))
        return f"with {sure} confidence at most {share} of images like these are flagged"


def sorted_scores(scores: ArrayLike) -> NDArray[np.float64]:
    """Return scores in ascending order.

    Raises:
        InvalidArgument: If they are not a vector, or one is not finite.
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise InvalidArgument(
            f"Expected finite scores [n] to calibrate from, got {list(array.shape)} with "
            f"{int((~np.isfinite(array)).sum())} that are not finite."
        )
    return np.sort(array)


def flag_rank(
    images: int,
    tpr: Share = "0.95",
    *,
    guarantee: str = "pac",
    confidence: Share = "0.95",
) -> int:
    """Return the rank ``k`` of the threshold among ``images`` sorted scores.

    Args:
        images: Number ``n`` of calibration scores.
        tpr: As of :meth:`Threshold.of`.
        guarantee: As of it.
        confidence: As of it.

    Raises:
        InvalidArgument: If an argument is out of range, or ``images`` are too few.
    """
    alpha, sure = 1 - _share(tpr, "tpr"), _share(confidence, "confidence")
    if guarantee not in GUARANTEES:
        known = " or ".join(GUARANTEES)
        raise InvalidArgument(f"Expected guarantee {known}, got {guarantee!r}.")
    rank = _rank(images, alpha, sure, guarantee)
    if rank < 1:
        most = f"at {percent(sure)} confidence " if guarantee == "pac" else ""
        raise InvalidArgument(
            f"Expected at least {_fewest(alpha, sure, guarantee):,} images to promise {most}"
            f"that at most {percent(alpha)} are flagged ({guarantee}), got {images:,}; give more "
            "images, or a lower `tpr`."
        )
    return rank


def p_values(scores: ArrayLike, calibration: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(1 + #{s_i <= s}) / (n + 1)`` of each score, shape ``[batch]``.

    An image is flagged at rank ``k`` exactly where its p-value is at most ``k / (n + 1)``.

    Args:
        scores: Scores, shape ``[batch]``.
        calibration: The calibration scores in ascending order, shape ``[n]``.
    """
    counts = np.searchsorted(calibration, np.asarray(scores, dtype=np.float64), side="right")
    return (1 + counts) / (len(calibration) + 1)


def drift_p_value(flagged: int, images: int, threshold: Threshold) -> float:
    """Return how probable it is that ``images`` clean ones flag ``flagged`` or more.

    The number of clean images that a threshold flags is beta-binomial: the share that lies below
    ``s(k)`` is itself drawn, with the calibration images, from ``Beta(k, n + 1 - k)``. A plain
    binomial forgets this, and calls two of five large clean batches drift.

    Args:
        flagged: How many of the new images are flagged.
        images: How many new images there are.
        threshold: What flagged them.
    """
    a, b = threshold.rank, threshold.images + 1 - threshold.rank
    if flagged <= 0:
        return 1.0
    # The shorter tail is summed: it has fewer terms, and the digits of a small one.
    upper = flagged > images * a / (a + b)
    first, last = (flagged, images) if upper else (0, flagged - 1)
    total = 0.0
    for start in range(first, last + 1, _CHUNK):
        x = np.arange(start, min(start + _CHUNK, last + 1), dtype=np.float64)
        choices = gammaln(images + 1) - gammaln(x + 1) - gammaln(images - x + 1)
        terms = np.exp(choices + betaln(x + a, images - x + b) - betaln(a, b))
        total += float(terms.sum())
        if upper and terms[-1] * (last - x[-1]) < _REST * total:
            break
    return min(1.0, total) if upper else max(0.0, 1 - total)


def share_interval(count: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a share of which ``count`` of ``images`` was seen.

    >>> tuple(round(bound, 3) for bound in share_interval(5, 100))
    (0.016, 0.113)
    """
    tail = (1 - confidence) / 2
    low = betaincinv(count, images - count + 1, tail) if count else 0.0
    high = betaincinv(count + 1, images - count, 1 - tail) if count < images else 1.0
    return float(low), float(high)


def percent(share: Rational) -> str:
    """Return a share as a percentage in at most four digits.

    >>> percent(Fraction(1, 20)), percent(Fraction(1, 1000))
    ('5%', '0.1%')
    """
    return f"{float(100 * share):.4g}%"


def _share(value: Share, name: str) -> Fraction:
    """Return a share as the exact decimal that it prints as, between 0 and 1."""
    try:
        share = Decimal(str(value))
        within = 0 < share < 1 and -share.as_tuple().exponent <= _DIGITS
    except InvalidOperation:  # no number, or NaN
        within = False
    if not within:
        raise InvalidArgument(f"Expected `{name}` between 0 and 1, got {value!r}.")
    return Fraction(share)


def _rank(images: int, alpha: Fraction, confidence: Fraction, guarantee: str) -> int:
    """Return the rank, 0 where the images are too few."""
    if guarantee == "marginal":
        return min(images, math.floor(alpha * (images + 1)))
    low, high = 0, images  # kept: the promise holds at low
    while low < high:
        middle = (low + high + 1) // 2
        if _promises(images, middle, alpha, confidence):
            low = middle
        else:
            high = middle - 1
    return low


def _promises(images: int, rank: int, alpha: Fraction, confidence: Fraction) -> bool:
    """Return whether ``Beta(rank, images + 1 - rank).cdf(alpha) >= confidence``.

    The left side is the probability that at least ``rank`` of ``images`` scores fall into the
    lowest share ``alpha``, a sum of fractions.
    """
    cdf = float(betainc(rank, images + 1 - rank, float(alpha)))
    if abs(cdf - confidence) > _NEAR:
        return cdf > confidence
    if images > _MOST_EXACT:
        return False
    a, b = alpha.numerator, alpha.denominator
    below = sum(math.comb(images, j) * a**j * (b - a) ** (images - j) for j in range(rank))
    return below * confidence.denominator <= b**images * (
        confidence.denominator - confidence.numerator
    )


def _fewest(alpha: Fraction, confidence: Fraction, guarantee: str) -> int:
    """Return the fewest images for which the promise can be made."""
    if guarantee == "marginal":
        return math.ceil(1 / alpha) - 1
    images = max(1, math.floor(math.log1p(-float(confidence)) / math.log1p(-float(alpha))) - 1)
    while not _promises(images, 1, alpha, confidence):
        images += 1
    return images
