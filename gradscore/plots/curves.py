"""ROC curves: how many of the ID and of the OOD images are accepted."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.metrics import checked
from gradscore.plots import canvas
from gradscore.plots.style import INK, SCORES, SOFT, as_text

POINTS = 1000
"""Most points of a ROC curve that are drawn."""
WIDEST, NARROWEST = 4.0, 1.0
"""Of the curves, in points: each is narrower than those below it, which stay visible."""
GAP = 0.08
"""Inches above and below the squares, so that the legend does not touch the name of an axis."""
HOLE = 40
"""Percent: right of it, and below the rest, the square is empty where scores are good."""
NEARLY_ALL = 97
"""Percent of the ID images, above which curves are no longer told apart."""
SMALLEST, LARGEST = 5.0, 2500.0
"""Percent: sides of a corner that is enlarged; and its area, where enlarging pays."""


def save_roc(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    *,
    colors: Mapping[str, str] | None = None,
    title: str = "",
    subtitle: str = "",
) -> None:
    """Draw how many ID images are accepted against how many OOD images, one panel an OOD set.

    Args:
        path: Where to; the ending chooses the format (.png, .pdf, .svg).
        panels: OOD set to name of a score to its ID scores ``[n]`` and OOD scores ``[m]``.
        colors: OOD set to the colour of its name.
        title: What is shown.
        subtitle: Of which model and sets.

    Raises:
        InvalidArgument: If the ending is unknown, or scores are empty or not finite.
        RunError: If the file cannot be written.
    """
    if any(len(scores) > 1 for scores in panels.values()):
        told = "Line widths have no meaning: they keep lines that overlap visible."
        subtitle = f"{subtitle} {told}".strip()
    size = {"width": 5, "height": 5.1} if len(panels) == 1 else {"width": 4, "height": 4.3}
    figure, axes = canvas.new_figure(path, len(panels), title=title, subtitle=subtitle, **size)
    figure.get_layout_engine().set(h_pad=GAP)
    curves = {
        ood: {name: 100 * np.stack(roc_points(*pair)) for name, pair in scores.items()}
        for ood, scores in panels.items()
    }
    corner = find_corner([curve for of_set in curves.values() for curve in of_set.values()])
    for place, (axis, (ood, of_set)) in enumerate(zip(axes, curves.items(), strict=True)):
        axis.axhline(95, color=SOFT, linewidth=0.8, label="95% of ID accepted")
        axis.plot([0, 100], [0, 100], color=SOFT, linewidth=0.8, linestyle=(0, (1, 3)))
        _draw(axis, of_set)
        axis.set_xlim(-1, 101)
        axis.set_ylim(-1, 101)
        axis.set_aspect("equal")
        axis.set_title(as_text(ood), fontsize=10.5, color=(colors or {}).get(ood, INK))
        axis.set_xlabel("OOD images accepted (%)")
        axis.set_ylabel("" if place % canvas.COLUMNS else "ID images accepted (%)")
        if corner:
            _enlarge(axis, of_set, *corner)
    canvas.add_legend(figure, axes)
    canvas.save_figure(figure, path)


def _draw(axis: Any, curves: Mapping[str, NDArray]) -> None:
    widths = np.linspace(WIDEST, NARROWEST, len(curves)) if len(curves) > 1 else [1.8]
    for number, (name, (x, y)) in enumerate(curves.items()):
        color = SCORES[number % len(SCORES)]
        axis.plot(x, y, color=color, linewidth=widths[number], label=as_text(name))


def find_corner(curves: Sequence[NDArray]) -> tuple[float, float] | None:
    """Return the corner at the upper left in which curves differ, or None where it is no corner.

    Args:
        curves: Percent of OOD and of ID images accepted, shape ``[2, points]`` each.

    Returns:
        Its right and its lower end, in percent.
    """
    x, y = np.concatenate(curves, axis=1)
    if ((x > HOLE) & (y < 100 - HOLE)).any():
        return None  # a curve goes where the enlarged corner would stand
    right = max(float(x[y < NEARLY_ALL].max(initial=0)), SMALLEST)
    lower = min(float(np.interp(right / 10, *curve)) for curve in curves)
    lower = min(lower, 100 - SMALLEST)
    return (right, lower) if right * (100 - lower) < LARGEST else None


def _enlarge(axis: Any, curves: Mapping[str, NDArray], right: float, lower: float) -> None:
    """Draw the upper left corner again, larger, where the square is empty."""
    inner = axis.inset_axes([0.44, 0.12, 0.53, 0.47])
    _draw(inner, curves)
    inner.axhline(95, color=SOFT, linewidth=0.8)
    inner.set_xlim(0, right)
    inner.set_ylim(lower, 100.5)
    inner.tick_params(labelsize=7.5, length=2)
    for spine in inner.spines.values():
        spine.set_color(SOFT)
    axis.indicate_inset_zoom(inner, edgecolor=SOFT, linewidth=0.8)


def roc_points(id_scores: ArrayLike, ood_scores: ArrayLike) -> tuple[NDArray, NDArray]:
    """Return the shares of OOD and of ID images accepted, as the threshold falls.

    Args:
        id_scores: Scores of ID inputs, shape ``[n]``.
        ood_scores: Scores of OOD inputs, shape ``[m]``.

    Returns:
        Two arrays of equal length, from 0 to 1; at most :data:`POINTS` and some points.

    >>> [share.tolist() for share in roc_points([2.0, 1.0], [1.0, 0.0])]
    [[0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0]]
    """
    ids, oods = np.sort(checked(id_scores, "ID")), np.sort(checked(ood_scores, "OOD"))
    cuts = np.unique(np.concatenate([ids, oods]))[::-1]
    accepted_ood = 1 - np.searchsorted(oods, cuts, side="left") / len(oods)
    accepted_id = 1 - np.searchsorted(ids, cuts, side="left") / len(ids)
    x, y = np.insert(accepted_ood, 0, 0.0), np.insert(accepted_id, 0, 0.0)
    # Points that no reader could tell apart are left out; the last stays.
    step = np.floor((x + y) * POINTS / 2)
    kept = np.append(np.diff(step) > 0, True) | (step == 0)
    return x[kept], y[kept]
