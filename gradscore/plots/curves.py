"""Curves: figures over a swept setting, and how many of ID and OOD images are accepted."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.evaluation import Row
from gradscore.metrics import checked
from gradscore.naming import setting_text
from gradscore.plots import canvas
from gradscore.plots.bars import has_intervals
from gradscore.plots.style import (
    INK,
    MARKERS,
    METRIC_LABELS,
    SHADES,
    STYLES,
    as_text,
)

ENDS = ("_low", "_high")
POINTS = 1000
"""Most points of a ROC curve that are drawn."""
_SWEPT = {"p": "Order p of the norm", "temperature": "Temperature T (log scale)"}


def save_lines(
    path: str | os.PathLike,
    rows: Sequence[Row],
    *,
    over: str,
    title: str = "",
    subtitle: str = "",
) -> None:
    """Draw AUROC and FPR95 over a swept setting, one line an OOD set (Figs. 4 and 5).

    Args:
        path: Where to.
        rows: Rows of an evaluation that differ in ``over`` alone.
        over: ``p`` or ``temperature``.
        title: What is shown.
        subtitle: Of which model and sets.

    Raises:
        InvalidArgument: If the ending is unknown.
        RunError: If the file cannot be written.
    """
    figure, axes = canvas.new_figure(path, 2, title=title, subtitle=subtitle)
    values = sorted({row[over] for row in rows})
    for axis, metric in zip(axes, METRIC_LABELS, strict=True):
        for place, ood in enumerate(dict.fromkeys(row["ood"] for row in rows)):
            chosen = sorted((row for row in rows if row["ood"] == ood), key=lambda r: r[over])
            places = [values.index(row[over]) for row in chosen]
            mean = ood == "mean"
            axis.plot(
                places,
                [100 * row[metric] for row in chosen],
                color=INK if mean else SHADES[place % len(SHADES)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=4,
                linestyle="-" if mean else STYLES[1 + place % 3],
                linewidth=2 if mean else 1.2,
                label=as_text(ood),
            )
            if mean and has_intervals(chosen, metric):
                low, high = ([100 * row[metric + end] for row in chosen] for end in ENDS)
                band = {"color": INK, "alpha": 0.15, "linewidth": 0}
                axis.fill_between(places, low, high, label="95% interval of the mean", **band)
        # Orders and temperatures are sweeps, not a scale: they stand evenly, infinity too.
        names = [setting_text(over, value).partition(" = ")[2] for value in values]
        axis.set_xticks(range(len(values)), names)
        axis.set_xlabel(_SWEPT[over])
        axis.set_ylabel(METRIC_LABELS[metric])
    canvas.add_legend(figure, axes)
    canvas.save_figure(figure, path)


def save_roc(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]],
    *,
    title: str = "",
    subtitle: str = "",
) -> None:
    """Draw how many ID images are accepted against how many OOD images, one panel an OOD set.

    Args:
        path: Where to; the ending chooses the format (.png, .pdf, .svg).
        panels: OOD set to name of a score to its ID scores ``[n]`` and OOD scores ``[m]``.
        title: What is shown.
        subtitle: Of which model and sets.

    Raises:
        InvalidArgument: If the ending is unknown, or scores are empty or not finite.
        RunError: If the file cannot be written.
    """
    figure, axes = canvas.new_figure(
        path, len(panels), title=title, subtitle=subtitle, width=4, height=3.9
    )
    for place, (axis, (ood, scores)) in enumerate(zip(axes, panels.items(), strict=True)):
        axis.axhline(95, color="#999999", linewidth=0.8, label="95% of ID accepted")
        for number, (name, pair) in enumerate(scores.items()):
            x, y = roc_points(*pair)
            axis.plot(
                100 * x,
                100 * y,
                color=SHADES[number % len(SHADES)],
                linestyle=STYLES[number % len(STYLES)],
                linewidth=1.5,
                label=as_text(name),
            )
        axis.plot([0, 100], [0, 100], color="#999999", linewidth=0.8, linestyle=(0, (1, 3)))
        axis.set_xlim(-1, 101)
        axis.set_ylim(-1, 101)
        axis.set_aspect("equal")
        axis.set_xlabel(as_text(f"{ood}: OOD images accepted (%)"))
        axis.set_ylabel("" if place % canvas.COLUMNS else "ID images accepted (%)")
    canvas.add_legend(figure, axes)
    canvas.save_figure(figure, path)


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
