"""The distribution of each set's scores, one below the other, cut by the threshold."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradscore.accuracy import percent
from gradscore.reporting.markup import Markup, details, joined, table, tag
from gradscore.reporting.operating import Grid, Shares
from gradscore.reporting.scales import WIDTH, quantiles, short, stairs
from gradscore.reporting.scored import ScoredSet
from gradscore.reporting.words import set_label, short_label

BINS = 64
"""Of each distribution; never more than 512."""
TOP, TITLE, HEIGHT, GAP, FOOT = 26, 20, 46, 16, 24
"""Pixels: above all, of a set's line of text, of its curve, below it, and of the axis."""
LABEL = 22
"""Characters of a set's name that leave room beside it on a narrow screen."""
SHARES = {"lowest": 0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95}
SHARES |= {"highest": 1}


def draw_densities(
    sets: Sequence[ScoredSet], shares: Sequence[Shares], grid: Grid, score: str
) -> Markup:
    """Return the figure, and the table behind it.

    Args:
        sets: The sets, one image or more each.
        shares: What each threshold does to them.
        grid: The thresholds.
        score: What the score is called.
    """
    bottom = TOP + len(sets) * (TITLE + HEIGHT + GAP)
    at = grid.positions()[grid.start]
    tops = [TOP + place * (TITLE + HEIGHT + GAP) for place in range(len(sets))]
    labels = [
        _label(place, one, known.share[grid.start], y)
        for place, (one, known, y) in enumerate(zip(sets, shares, tops, strict=True))
    ]
    clip = tag(
        "clipPath",
        tag("rect", x=0, y=0, width=at, height=HEIGHT, data_clip=True),
        id="flagged",
    )
    figure = tag(
        "svg",
        tag("title", f"Distribution of {score}, one curve a set, with the threshold"),
        tag("defs", clip),
        *(_curve(one, grid, y + TITLE) for one, y in zip(sets, tops, strict=True)),
        *_axis(grid, bottom),
        _threshold(grid, bottom),
        *labels,
        class_="densities",
        width="100%",
        height=bottom + FOOT,
        role="img",
        data_drag=True,
    )
    told = tag("figcaption", f"{score}: further right is more in-distribution.", class_="about")
    return joined(tag("figure", figure, told), _table(sets, score))


def _curve(one: ScoredSet, grid: Grid, y: float) -> Markup:
    path = stairs(_heights(one.scores, grid), WIDTH, HEIGHT)
    how = {"vector_effect": "non-scaling-stroke"}
    curve = tag(
        "svg",
        tag("path", d=path, class_="kept", **how),
        tag("path", d=path, class_="cut", clip_path="url(#flagged)", **how),
        x=0,
        y=y,
        width="100%",
        height=HEIGHT,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
    )
    base = tag("line", x1=0, x2="100%", y1=y + HEIGHT, y2=y + HEIGHT, class_="base")
    return tag("g", base, curve, class_=f"tone-{one.tone}")


def _label(place: int, one: ScoredSet, share: int, y: float) -> Markup:
    """Return a set's line of text; it stands above the threshold's line, which it interrupts."""
    told = tag("tspan", percent(share), data_set=place, data_show="flagged")
    return tag(
        "g",
        tag("text", short_label(one.info, LABEL), x=0, y=y + 12, class_="name"),
        tag("text", told, " flagged", x="100%", y=y + 12, text_anchor="end", class_="told"),
        class_=f"tone-{one.tone}",
    )


def _heights(scores: NDArray[np.float64], grid: Grid) -> list[float]:
    """Return the share of the images in each bin, of the fullest; the ends hold what is beyond."""
    inside = np.clip(scores, grid.axis.low, grid.axis.high)
    counts, _ = np.histogram(inside, BINS, (grid.axis.low, grid.axis.high))
    return (counts / counts.max()).tolist()


def _axis(grid: Grid, bottom: float) -> list[Markup]:
    parts = [tag("line", x1=0, x2="100%", y1=bottom, y2=bottom, class_="axis")]
    ticks = grid.axis.ticks()
    for value in ticks:
        share = grid.axis.share(value)
        x = f"{100 * share:.2f}%"
        anchor = "start" if share < 0.03 else "end" if share > 0.97 else "middle"
        parts.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 5, class_="axis"))
        how = {"text_anchor": anchor, "class_": "tick"}
        parts.append(tag("text", short(value), x=x, y=bottom + 18, **how))
    return parts


def _threshold(grid: Grid, bottom: float) -> Markup:
    at = grid.positions()[grid.start] / 10
    x = f"{at}%"
    anchor = "end" if at > 50 else "start"
    text = tag(
        "text",
        "threshold ",
        tag("tspan", grid.labels()[grid.start], data_show="threshold"),
        x=x,
        dx=-6 if at > 50 else 6,
        y=12,
        text_anchor=anchor,
        data_label=True,
    )
    line = tag("line", x1=x, x2=x, y1=0, y2=bottom, data_line=True)
    return tag("g", line, text, class_="threshold")


def _table(sets: Sequence[ScoredSet], score: str) -> Markup:
    rows = []
    for one in sets:
        ordered = np.sort(one.scores)
        values = quantiles(ordered, tuple(SHARES.values()))
        rows.append([set_label(one.info), f"{len(one):,}", *(short(value) for value in values)])
    columns = ["Set", "Images", *SHARES]
    return details(
        "The same in numbers", table(f"Where the {score} scores of each set lie", columns, rows)
    )
