"""The two factors of GradNorm: U, the norm of the features, against V, that of the output."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradscore.metrics import auroc
from gradscore.reporting.markup import Markup, breakable, details, joined, note, table, tag
from gradscore.reporting.scales import Axis, dots, line, short
from gradscore.reporting.scored import ScoredSet

SIDE = 100
CURVE_POINTS = 25


def draw_factors(ids: Sequence[ScoredSet], oods: Sequence[ScoredSet]) -> Markup | None:
    """Return U against V, one square an OOD set, or None where the run does not know them."""
    if any(one.factors is None for one in (*ids, *oods)):
        return None
    known = np.concatenate([one.factors for one in ids], axis=1)
    everything = np.concatenate([known, *(one.factors for one in oods)], axis=1)
    across, up = (Axis.around(values.tolist()) for values in everything)
    product = float(np.quantile(known.prod(axis=0), 0.05))
    panels, rows = [], []
    for one in oods:
        values = [auroc(ours, theirs) for ours, theirs in zip(known, one.factors, strict=True)]
        both = auroc(known.prod(axis=0), one.factors.prod(axis=0))
        told = [f"{100 * value:.1f}%" for value in (*values, both)]
        title = f"U against V of the ID images and of {one.name}"
        drawing = tag(
            "svg",
            tag("title", title),
            tag("rect", x=0, y=0, width=SIDE, height=SIDE, class_="frame"),
            tag("path", d=_hyperbola(product, across, up), class_="chance"),
            tag("path", d=_dots(known, across, up), class_="dots tone-id"),
            tag("path", d=_dots(one.factors, across, up), class_=f"dots tone-{one.tone}"),
            viewBox=f"-4 -4 {SIDE + 8} {SIDE + 8}",
            role="img",
        )
        legend = joined(
            tag("strong", breakable(one.name), class_=f"colored tone-{one.tone}"),
            tag("br"),
            tag("span", "●", class_="colored tone-id", aria_hidden="true"),
            " ID ",
            tag("span", "●", class_=f"colored tone-{one.tone}", aria_hidden="true"),
            " OOD",
        )
        panels.append(tag("figure", drawing, tag("figcaption", legend), class_="panel"))
        rows.append([breakable(one.name), *told])
    told = (
        "GradNorm of the last layer is U times V. U, to the right, is the size of the features "
        f"({short(across.low)} to {short(across.high)}). V, upwards, is how far the output is "
        f"from undecided ({short(up.low)} to {short(up.high)}). Along the dashed line the "
        "product is that which 95% of the ID images exceed. Where U alone, or V alone, separates "
        "the two colours, the other factor only adds noise."
    )
    drawn = max(one.factors.shape[1] for one in (*ids, *oods))
    caption = "AUROC of U, of V and of their product"
    columns = ["OOD set", "U alone", "V alone", "U times V"]
    more = note(f"Of the images drawn: at most {drawn:,} a set, spread evenly over it.")
    behind = details("The same in numbers", table(caption, columns, rows), more)
    return joined(tag("p", told), tag("div", *panels, class_="panels"), behind)


def _dots(factors: NDArray[np.float64], across: Axis, up: Axis) -> str:
    return dots((SIDE * across.share(u), SIDE * (1 - up.share(v))) for u, v in factors.T.tolist())


def _hyperbola(product: float, across: Axis, up: Axis) -> str:
    """Return the points inside of the square whose U V is ``product``; V is never negative."""
    points = []
    for u in np.linspace(across.low, across.high, CURVE_POINTS).tolist():
        v = product / u if u > 0 else np.inf
        if up.low <= v <= up.high:
            points.append((SIDE * across.share(u), SIDE * (1 - up.share(v))))
    return line(points) if points else "M0 0"
