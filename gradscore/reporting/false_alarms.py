"""False alarms by predicted class: a mix of classes may be flagged more often than another."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradscore.accuracy import percent, tenths
from gradscore.detector.threshold import share_interval
from gradscore.escapes import counted
from gradscore.reporting.basis import Cut
from gradscore.reporting.markup import Markup, details, joined, note, table, tag
from gradscore.reporting.scales import outward
from gradscore.reporting.scored import ScoredSet
from gradscore.reporting.words import class_label
from gradscore.run import RunInfo

SHOWN, MOST = 12, 200
"""Classes that are shown at once, and at all."""
FEW = 5
"""Images of a class below which its share says nothing."""


def draw_false_alarms(ids: Sequence[ScoredSet], cut: Cut, about: RunInfo) -> Markup:
    """Return which share of the ID images is flagged, by the class that the model predicts."""
    predicted = np.concatenate([one.predicted for one in ids])
    flagged = np.concatenate([one.scores for one in ids]) < cut.value
    images = np.bincount(predicted, minlength=about.classes)
    wrong = np.bincount(predicted[flagged], minlength=about.classes)
    seen = np.flatnonzero(images)
    shares = wrong[seen] / images[seen]
    # By share, and of equal ones the class with more images first; those with few come last.
    order = np.lexsort((seen, -images[seen], -shares, images[seen] < FEW))
    rows = [
        _row(class_label(about, int(number)), int(wrong[number]), int(images[number]))
        for number in seen[order[:MOST]]
    ]
    if not wrong.any():
        return tag(
            "p",
            f"None of the {counted(len(flagged), 'ID image')}, of any class, is flagged at the "
            "report's threshold.",
        )
    overall = percent(tenths(int(flagged.sum()), len(flagged)))
    told = (
        f"At the report's threshold {overall} of all ID images are flagged. Where one class is "
        "flagged far more often than others, that share holds for this mix of classes alone. "
        f"{_about_few(images[seen])}"
    )
    columns = ["Predicted class", "Share", "0% to 100%", "95% interval", "Flagged", "Images"]
    caption = "False alarms by predicted class"
    shown = table(caption, columns, rows[:SHOWN])
    rest = rows[SHOWN:]
    more = details(f"{len(rest)} more classes", table(caption, columns, rest)) if rest else None
    hidden = len(seen) - len(rows)
    cut_off = note(f"{hidden:,} more classes are not listed.") if hidden else None
    return joined(tag("p", told), shown, more, cut_off)


def _about_few(images: NDArray[np.int64]) -> str:
    if (images < FEW).all():
        return f"No class has {FEW} images: the shares below say next to nothing."
    return f"Classes of fewer than {FEW} images stand last." if (images < FEW).any() else ""


def _row(name: str, wrong: int, images: int) -> list[object]:
    low, high = outward(*share_interval(wrong, images))
    share = tenths(wrong, images)
    drawing = tag(
        "svg",
        tag("rect", x=0, y=3, width="100%", height=8, class_="track"),
        tag("rect", x=0, y=3, width=f"{share / 10}%", height=8, class_="fill"),
        tag("line", x1=f"{low / 10}%", x2=f"{high / 10}%", y1=7, y2=7, class_="spread"),
        width="100%",
        height=14,
        aria_hidden="true",
    )
    interval = f"{percent(low)} to {percent(high)}"
    bar = tag("td", drawing, class_="bar tone-id")
    return [name, percent(share), bar, interval, f"{wrong:,}", f"{images:,}"]
