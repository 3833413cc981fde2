"""What each threshold does to each set: how many images are flagged, of which share, how sure.

All is computed here, on a grid of thresholds. The page looks it up and computes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscore.accuracy import tenths
from gradscore.detector.threshold import share_interval
from gradscore.reporting.basis import Cut
from gradscore.reporting.scales import WIDTH, Axis, outward, quantiles, short

EVEN = 120
"""Thresholds at equal steps."""
LOW_SHARES = tuple(place / 200 for place in range(21))
"""Shares of the ID images at whose scores there are thresholds, too: where gates are set."""
HIGH_SHARES = tuple(place / 20 for place in range(3, 21))
CUT_OFF = 0.005
"""Share of a set's images beyond either end of the axis."""


@dataclass(frozen=True)
class Shares:
    """What each threshold does to one set.

    Attributes:
        images: Number of images.
        flagged: How many of them score below each threshold, shape ``[grid]``.
        share: The same in tenths of a percent.
        low: Lower end of the 95% interval of the share, rounded down.
        high: Upper end, rounded up.
    """

    images: int
    flagged: list[int]
    share: list[int]
    low: list[int]
    high: list[int]

    @classmethod
    def of(cls, scores: NDArray[np.float64], thresholds: Sequence[float]) -> "Shares":
        """Return what thresholds do to the images of some scores."""
        images = len(scores)
        flagged = np.searchsorted(np.sort(scores), thresholds, side="left").tolist()
        ends = {count: outward(*share_interval(count, images)) for count in set(flagged)}
        return cls(
            images,
            flagged,
            [tenths(count, images) for count in flagged],
            [ends[count][0] for count in flagged],
            [ends[count][1] for count in flagged],
        )

    def to_dict(self) -> dict[str, object]:
        """Return what the page looks up."""
        return {"n": self.images, "flagged": self.flagged} | {
            "share": self.share,
            "low": self.low,
            "high": self.high,
        }


@dataclass(frozen=True)
class Grid:
    """The thresholds of a page.

    Attributes:
        axis: The scores that are drawn.
        thresholds: In ascending order; the report's own is among them.
        start: Place of the report's own.
    """

    axis: Axis
    thresholds: list[float]
    start: int

    @classmethod
    def of(
        cls, sets: Sequence[NDArray[np.float64]], ids: Sequence[NDArray[np.float64]], cut: Cut
    ) -> "Grid":
        """Return the thresholds for some sets, one image or more each.

        Args:
            sets: Scores of every set that is drawn.
            ids: Scores of the ID sets.
            cut: The report's own threshold.
        """
        ends = [quantiles(np.sort(scores), (CUT_OFF, 1 - CUT_OFF)) for scores in sets]
        axis = Axis.around([cut.value, *(end for pair in ends for end in pair)])
        even = np.linspace(axis.low, axis.high, EVEN + 1).tolist()
        known = np.sort(np.concatenate(ids)) if ids else []
        asked = quantiles(known, (*LOW_SHARES, *HIGH_SHARES)) if len(known) else []
        inside = [value for value in asked if axis.low <= value <= axis.high]
        thresholds = sorted({*even, *inside, cut.value})
        return cls(axis, thresholds, thresholds.index(cut.value))

    def positions(self) -> list[float]:
        """Return where each threshold stands along a drawing, in its units."""
        return [round(WIDTH * self.axis.share(value), 1) for value in self.thresholds]

    def labels(self) -> list[str]:
        """Return each threshold as text."""
        return [short(value) for value in self.thresholds]
