"""Numbers on the page: axes with round ticks, paths in few characters, shares in whole tenths."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

TICKS = 5
"""About so many of an axis."""
WIDTH = 1000
"""Units along a drawing."""


@dataclass(frozen=True)
class Axis:
    """The stretch of numbers that a drawing shows.

    Attributes:
        low: At its left, or lower, end.
        high: At the other.
    """

    low: float
    high: float

    @classmethod
    def around(cls, values: Iterable[float]) -> "Axis":
        """Return the axis that just holds some numbers; a single one stands in its middle."""
        values = list(values)
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if not high > low:
            room = max(abs(low), 1.0) / 2
            low, high = low - room, high + room
        return cls(low, high)

    def share(self, value: float) -> float:
        """Return how far along a number stands, 0 to 1; beyond an end it stands at the end."""
        # Halves first: the difference of two large numbers may be infinite.
        part = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return min(1.0, max(0.0, part))

    def ticks(self) -> list[float]:
        """Return round numbers along the axis."""
        rough = (self.high / 2 - self.low / 2) * 2 / TICKS
        if not math.isfinite(rough):
            return [self.low, self.high]
        step = round_up(rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [place * step for place in range(first, last + 1)]


def round_up(value: float) -> float:
    """Return the next number that is 1, 2 or 5 times a power of ten.

    >>> [round_up(value) for value in (0.3, 2.1, 10.0)]
    [0.5, 5.0, 10.0]
    """
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))


def short(value: float) -> str:
    """Return a number in at most four digits.

    >>> short(1234.56), short(0.1 + 0.2), short(-0.0)
    ('1235', '0.3', '0')
    """
    return f"{value + 0.0:.4g}"


def units(value: float) -> str:
    """Return a length in a drawing, to a tenth of a unit.

    >>> units(12.04), units(7.25)
    ('12', '7.2')
    """
    return f"{value:.1f}".removesuffix(".0")


def line(points: Iterable[tuple[float, float]]) -> str:
    """Return the path through some points.

    >>> line([(0, 0), (5, 2.5)])
    'M0 0L5 2.5'
    """
    return "M" + "L".join(f"{units(x)} {units(y)}" for x, y in points)


def dots(points: Iterable[tuple[float, float]]) -> str:
    """Return the path of strokes without length: with round ends each is a dot."""
    return "".join(f"M{units(x)} {units(y)}h0" for x, y in points)


def stairs(heights: Sequence[float], width: float, height: float) -> str:
    """Return the outline of bars that stand side by side, closed at the bottom.

    Args:
        heights: Of the bars, 0 to 1.
        width: Of all bars together.
        height: Of a bar of 1.
    """
    step, parts = width / len(heights), [f"M0 {units(height)}"]
    for place, share in enumerate(heights):
        parts.append(f"V{units(height * (1 - share))}H{units(step * (place + 1))}")
    return "".join(parts) + f"V{units(height)}Z"


def outward(low: float, high: float) -> tuple[int, int]:
    """Return the ends of an interval of fractions in tenths of a percent, rounded apart."""
    return math.floor(1000 * low), math.ceil(1000 * high)


def quantiles(ordered: ArrayLike, shares: Sequence[float]) -> list[float]:
    """Return of ascending numbers those that stand at some shares of the way, none in between."""
    last = len(ordered) - 1
    return [float(ordered[round(share * last)]) for share in shares]
