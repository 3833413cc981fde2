"""Sweeps: AUROC and FPR95 over the orders of a norm, or over temperatures (Figs. 4 and 5)."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gradscore.evaluation import Row
from gradscore.naming import setting_text
from gradscore.pivot import LOWER_IS_BETTER
from gradscore.plots import canvas
from gradscore.plots.bars import has_intervals
from gradscore.plots.style import INK, METRIC_LABELS, STYLES, Look, as_text, set_looks

ENDS = ("_low", "_high")
SHRINKS = 0.5
"""Each setting that is left outside makes the axis shorter than this share."""
MOST_OUTSIDE = 1 / 3
"""Share of the settings that may be left outside."""
MARGIN = 0.06
"""Room above and below the lines, as a share of their range."""
_THE = {"mean": "the mean"}
_SWEPT = {
    "p": "Order p of the norm (evenly spaced, not to scale)",
    "temperature": "Temperature T (log scale)",
}


def save_lines(
    path: str | os.PathLike,
    rows: Sequence[Row],
    *,
    over: str,
    looks: Mapping[str, Look] | None = None,
    title: str = "",
    subtitle: str = "",
) -> None:
    """Draw AUROC and FPR95 over a swept setting, one line an OOD set and their mean.

    A setting that is far worse than all others would flatten the lines. It stands outside the
    axis then, with the mean's figure at the edge.

    Args:
        path: Where to.
        rows: Rows of an evaluation that differ in ``over`` alone.
        over: ``p`` or ``temperature``.
        looks: OOD set to how it is drawn; by default in the order of the rows.
        title: What is shown.
        subtitle: Of which model and sets.

    Raises:
        InvalidArgument: If the ending is unknown.
        RunError: If the file cannot be written.
    """
    looks = looks or set_looks(dict.fromkeys((row["ood"] for row in rows), "ood"))
    values = sorted({row[over] for row in rows})
    # Temperatures stand on a log scale; orders stand evenly, infinity too.
    at = dict(zip(values, values if over == "temperature" else range(len(values)), strict=True))
    far = {metric: _outside(rows, over, metric) for metric in METRIC_LABELS}
    if any(far.values()):
        subtitle += " Figures at the edge: means that lie beyond the axis."
    figure, axes = canvas.new_figure(path, 2, title=title, subtitle=subtitle)
    for axis, metric in zip(axes, METRIC_LABELS, strict=True):
        for line in _lines(rows, looks, over):
            _draw(axis, line, at, over, metric)
        if over == "temperature":
            axis.set_xscale("log", base=2)
            axis.minorticks_off()
        names = [setting_text(over, value).partition(" = ")[2] for value in values]
        axis.set_xticks(list(at.values()), names)
        axis.set_xlabel(_SWEPT[over])
        axis.set_ylabel(METRIC_LABELS[metric])
        if far[metric]:
            _mark_outside(axis, rows, over, metric, far[metric], at)
    canvas.add_legend(figure, axes)
    canvas.save_figure(figure, path)


def _lines(
    rows: Sequence[Row], looks: Mapping[str, Look], over: str
) -> Iterator[tuple[list[Row], str, dict[str, Any]]]:
    """Yield the rows of each line, its label and its look; of several ID sets each has its own."""
    ids = list(dict.fromkeys(row["id"] for row in rows))
    for ood in dict.fromkeys(row["ood"] for row in rows):
        for place, name in enumerate(ids):
            chosen = [row for row in rows if (row["id"], row["ood"]) == (name, ood)]
            chosen.sort(key=lambda row: row[over])
            if not chosen:
                continue
            label = as_text(ood if len(ids) == 1 else f"{name} against {ood}")
            if ood == "mean":
                how = {"color": INK, "linewidth": 2, "marker": "o", "linestyle": STYLES[place % 4]}
            else:
                look = looks[ood]
                style = STYLES[1 + place % 3] if len(ids) > 1 else look.style
                how = {"color": look.color, "marker": look.marker, "linestyle": style}
            yield chosen, label, {"linewidth": 1.2, "markersize": 4} | how


def _draw(
    axis: Any,
    line: tuple[list[Row], str, dict[str, Any]],
    at: Mapping[float, float],
    over: str,
    metric: str,
) -> None:
    chosen, label, how = line
    places = [at[row[over]] for row in chosen]
    axis.plot(places, [100 * row[metric] for row in chosen], label=label, **how)
    if chosen[0]["ood"] == "mean" and has_intervals(chosen, metric):
        low, high = ([100 * row[metric + end] for row in chosen] for end in ENDS)
        band = {"color": INK, "alpha": 0.15, "linewidth": 0}
        axis.fill_between(
            places, low, high, label=f"95% interval of {_THE.get(label, label)}", **band
        )


def _means(rows: Sequence[Row], over: str, metric: str) -> dict[float, float]:
    """Return each setting's figure, averaged over what is drawn."""
    drawn = [row for row in rows if row["ood"] == "mean"] or rows
    figures: dict[float, list[float]] = {}
    for row in drawn:
        figures.setdefault(row[over], []).append(row[metric])
    return {value: float(np.mean(of_value)) for value, of_value in figures.items()}


def _ends(rows: Sequence[Row], metric: str) -> tuple[float, float]:
    """Return the lowest and the highest figure that is drawn of some rows."""
    figures = [row[metric] for row in rows]
    means = [row for row in rows if row["ood"] == "mean"]
    if means and has_intervals(means, metric):
        figures += [row[metric + end] for row in means for end in ENDS]
    return min(figures), max(figures)


def _outside(rows: Sequence[Row], over: str, metric: str) -> list[float]:
    """Return the settings that would flatten the lines of all others, the worst first."""
    means = _means(rows, over, metric)
    order = sorted(means, key=means.__getitem__, reverse=metric in LOWER_IS_BETTER)
    left_out = 0
    for count in range(1, 1 + int(MOST_OUTSIDE * len(order))):
        before, after = (
            _height([row for row in rows if row[over] not in order[:number]], metric)
            for number in (left_out, count)
        )
        if after < SHRINKS ** (count - left_out) * before:
            left_out = count
    return order[:left_out]


def _height(rows: Sequence[Row], metric: str) -> float:
    low, high = _ends(rows, metric)
    return high - low


def _mark_outside(
    axis: Any,
    rows: Sequence[Row],
    over: str,
    metric: str,
    outside: Sequence[float],
    at: Mapping[float, float],
) -> None:
    """Set the axis to the other settings, and write these at its edge."""
    low, high = _ends([row for row in rows if row[over] not in outside], metric)
    room = max(high - low, 0.01)
    axis.set_ylim(100 * (low - MARGIN * room), 100 * (high + MARGIN * room))
    means, top = _means(rows, over, metric), metric in LOWER_IS_BETTER
    for value in outside:
        axis.annotate(
            f"{100 * means[value]:.1f}",
            (at[value], 1 if top else 0),
            xycoords=axis.get_xaxis_transform(),
            xytext=(0, -16 if top else 16),
            textcoords="offset points",
            ha="center",
            va="top" if top else "bottom",
            fontsize=8.5,
            arrowprops={"arrowstyle": "->", "color": INK},
        )
