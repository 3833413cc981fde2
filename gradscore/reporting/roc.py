"""ROC curves: one small square an OOD set, and its figures."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradscore.evaluation import Estimate, evaluate
from gradscore.reporting.markup import Markup, breakable, details, joined, note, table, tag
from gradscore.reporting.operating import Grid, Shares
from gradscore.reporting.scales import line, quantiles
from gradscore.reporting.scored import ScoredSet

STEPS = 80
"""Points of a curve that are taken from each side; they lie on the curve exactly."""
SIDE = 100


def draw_curves(
    ids: NDArray[np.float64],
    oods: Sequence[tuple[int, ScoredSet]],
    known: Shares,
    shares: Sequence[Shares],
    grid: Grid,
) -> Markup:
    """Return the curves, and the table behind them.

    Args:
        ids: Scores of all ID images.
        oods: The OOD sets, each behind its place among all sets.
        known: What each threshold does to all ID images together.
        shares: What it does to each set.
        grid: The thresholds.
    """
    panels, rows = [], []
    for place, one in oods:
        figures = evaluate(ids, one.scores)
        accepted = 1 - shares[place].flagged[grid.start] / shares[place].images
        kept = 1 - known.flagged[grid.start] / known.images
        dot = tag(
            "circle",
            cx=f"{SIDE * accepted:.2f}",
            cy=f"{SIDE * (1 - kept):.2f}",
            r=2.6,
            data_dot=place,
        )
        title = f"ROC curve of {one.name}: AUROC {100 * figures.auroc.value:.1f}%"
        drawing = tag(
            "svg",
            tag("title", title),
            tag("rect", x=0, y=0, width=SIDE, height=SIDE, class_="frame"),
            tag("path", d=f"M0 {SIDE}L{SIDE} 0", class_="chance"),
            tag("path", d=_path(ids, one.scores), class_="curve"),
            dot,
            viewBox=f"-4 -4 {SIDE + 8} {SIDE + 8}",
            role="img",
        )
        caption = tag(
            "figcaption",
            tag("strong", breakable(one.name), class_="colored"),
            tag("br"),
            f"AUROC {100 * figures.auroc.value:.1f}%",
        )
        panels.append(tag("figure", drawing, caption, class_=f"panel tone-{one.tone}"))
        images = f"{len(one):,}"
        rows.append([breakable(one.name), images, _text(figures.auroc), _text(figures.fpr95)])
    told = (
        "Each square: to the right, the share of the OOD set that is wrongly accepted; upwards, "
        "the share of ID images that is kept. The nearer to the upper left corner, the better. "
        "The dashed line is a coin toss. The dot is the threshold above."
    )
    columns = ["OOD set", "Images", "AUROC", "FPR95"]
    meaning = (
        "AUROC: how often an ID image scores above an OOD one. FPR95: the share of the OOD set "
        "that is accepted where 95% of the ID images are. Behind them 95% bootstrap intervals."
    )
    behind = details(
        "The same in numbers", table("ROC figures of each OOD set", columns, rows), note(meaning)
    )
    return joined(tag("p", told), tag("div", *panels, class_="panels"), behind)


def _path(ids: NDArray[np.float64], oods: NDArray[np.float64]) -> str:
    """Return the curve through exact points: those of thresholds spread over both sides."""
    ids, oods = np.sort(ids), np.sort(oods)
    spread = np.linspace(0, 1, STEPS + 1).tolist()
    cuts = np.unique([*quantiles(ids, spread), *quantiles(oods, spread)])
    kept = 1 - np.searchsorted(ids, cuts, "left") / len(ids)
    accepted = 1 - np.searchsorted(oods, cuts, "left") / len(oods)
    points = np.stack([SIDE * accepted, SIDE * (1 - kept)], axis=1)[::-1].tolist()
    distinct = dict.fromkeys((round(x, 1), round(y, 1)) for x, y in [(0, SIDE), *points])
    return line(distinct)


def _text(figure: Estimate) -> str:
    value, low, high = (100 * part for part in figure)
    return f"{value:.1f}% ({low:.1f}% to {high:.1f}%)"
