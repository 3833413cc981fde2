"""Curves, bars and dots: one function a kind of figure.

Readable in grey: ID is solid and dark, OOD is dashed or hollow, and every curve has its own
marker. matplotlib is imported on first use, and never touches the process's own figures.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.evaluation import Row
from gradscore.norms import number_name
from gradscore.plots.canvas import add_legend, as_text, new_figure, save_figure

INK = "#1a1a1a"
SHADES = ("#1a1a1a", "#1f6fb2", "#c4551c", "#5f9e3f", "#8a63a6", "#9c8412", "#4aa3a3", "#777777")
MARKERS = "osD^vPX*"
FILLS = ("#b8b8b8", "#a9cbe6", "#f0bfa3", "#bcdcab", "#d3c2e0", "#e3d590", "#b5dede")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "++", "oo")
"""One more than fills, so that neighbours differ in both and 56 bars in one of them."""
STYLES = ("-", "--", "-.", ":")
BINS = 40
CUT = 0.2
"""Share of all scores, in percent, beyond either end of the axis of a distribution."""
SPIKE = 40
"""Share of one bin, in percent, above which the other bins need a logarithmic axis."""

ENDS = ("_low", "_high")
METRIC_LABELS = {
    "auroc": "AUROC (%), higher is better",
    "fpr95": "FPR95 (%), lower is better",
}


def save_densities(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, ArrayLike]],
    *,
    id_names: Sequence[str],
) -> None:
    """Draw each set's distribution of scores, one panel a score (the paper's Figs. 2 and 7).

    Args:
        path: Where to; the ending chooses the format (.png, .pdf, .svg).
        panels: Axis label to set name to scores.
        id_names: Which of the sets are ID.

    Raises:
        InvalidArgument: If the ending is unknown.
        GradScoreError: If matplotlib is not installed.
        RunError: If the file cannot be written.
    """
    figure, axes = new_figure(path, len(panels))
    for axis, (label, sets) in zip(axes, panels.items(), strict=True):
        everything = np.concatenate([np.asarray(scores, float) for scores in sets.values()])
        # Single outliers would squeeze everything else into one bin.
        low, high = np.percentile(everything, (CUT, 100 - CUT))
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
        shares = {name: _shares(scores, edges) for name, scores in sets.items()}
        spiky = max(share.max() for share in shares.values()) > SPIKE
        floor = min(share[share > 0].min() for share in shares.values()) / 2 if spiky else 0
        for place, (name, share) in enumerate(shares.items()):
            color = SHADES[place % len(SHADES)]
            if name in id_names:
                axis.stairs(share, edges, color=INK, alpha=0.15, fill=True)
                axis.stairs(share, edges, color=color, linewidth=1.4, label=f"{name} (ID)")
            else:
                axis.plot(
                    (edges[1:] + edges[:-1]) / 2,
                    np.maximum(share, floor),
                    color=color,
                    linestyle=STYLES[1 + place % 3],
                    linewidth=1.2,
                    marker=MARKERS[place % len(MARKERS)],
                    markersize=4,
                    markevery=(place % 3, 3),
                    fillstyle="none",
                    label=f"{name} (OOD)",
                )
        cut = everything.min() < low or everything.max() > high
        note = f"\n(the end bins hold the lowest and the highest {CUT}%, too)" if cut else ""
        axis.set_xlabel(label + note)
        axis.set_yscale("log" if spiky else "linear")
        axis.set_ylim(floor, 100 if spiky else None)
        axis.set_ylabel(f"Share of images per bin (%{', log scale' if spiky else ''})")
    add_legend(figure, axes)
    save_figure(figure, path)


def save_bars(
    path: str | os.PathLike,
    rows: Sequence[Row],
    *,
    by: Callable[[Row], str],
    metric: str = "fpr95",
) -> None:
    """Draw one group of bars an OOD set, one bar a setting (the paper's Fig. 3).

    Args:
        path: Where to.
        rows: Rows of an evaluation; a bar whose OOD set it lacks is left out.
        by: What a row's bar is called in the legend.
        metric: ``fpr95`` or ``auroc``.

    Raises:
        InvalidArgument: If the ending is unknown.
        GradScoreError: If matplotlib is not installed.
        RunError: If the file cannot be written.
    """
    oods = list(dict.fromkeys(row["ood"] for row in rows))
    oods.sort(key="mean".__eq__)
    names = list(dict.fromkeys(map(by, rows)))
    labels = [as_text(name) for name in names]
    figure, (axis,) = new_figure(
        path, 1, width=max(5.0, 1.0 + 0.35 * len(oods) * (len(names) + 1))
    )
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        values = {row["ood"]: row for row in rows if by(row) == name}
        at = np.array([oods.index(ood) for ood in values]) + (place - (len(names) - 1) / 2) * width
        axis.bar(
            at,
            [100 * row[metric] for row in values.values()],
            width * 0.92,
            yerr=_spread(list(values.values()), metric),
            color=FILLS[place % len(FILLS)],
            edgecolor=INK,
            hatch=HATCHES[place % len(HATCHES)],
            error_kw={"elinewidth": 0.8, "ecolor": INK},
            label=labels[place],
        )
    axis.set_xticks(range(len(oods)), map(as_text, oods))
    intervals = _has_intervals(rows, metric)
    axis.set_xlabel(f"OOD set{'; thin lines: 95% intervals' if intervals else ''}")
    axis.set_ylabel(METRIC_LABELS[metric])
    axis.set_ylim(0, 100)
    add_legend(figure, [axis])
    save_figure(figure, path)


def save_lines(path: str | os.PathLike, rows: Sequence[Row], *, over: str) -> None:
    """Draw FPR95 and AUROC over a swept setting, one line an OOD set (Figs. 4 and 5).

    Args:
        path: Where to.
        rows: Rows of an evaluation that differ in ``over`` alone.
        over: ``p`` or ``temperature``.

    Raises:
        InvalidArgument: If the ending is unknown.
        GradScoreError: If matplotlib is not installed.
        RunError: If the file cannot be written.
    """
    figure, axes = new_figure(path, 2)
    values = sorted({row[over] for row in rows})
    for axis, metric in zip(axes, ("fpr95", "auroc"), strict=True):
        for place, ood in enumerate(dict.fromkeys(row["ood"] for row in rows)):
            chosen = sorted((row for row in rows if row["ood"] == ood), key=lambda r: r[over])
            places = [values.index(row[over]) for row in chosen]
            mean = ood == "mean"
            axis.plot(
                places,
                [100 * row[metric] for row in chosen],
                color=INK if mean else SHADES[1:][place % (len(SHADES) - 1)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=4,
                linestyle="-" if mean else STYLES[1 + place % 3],
                linewidth=2 if mean else 1.2,
                label=ood,
            )
            if mean and _has_intervals(chosen, metric):
                low, high = ([100 * row[metric + end] for row in chosen] for end in ENDS)
                band = {"color": INK, "alpha": 0.15, "linewidth": 0}
                axis.fill_between(places, low, high, label="95% interval of the mean", **band)
        # Orders and temperatures are sweeps, not a scale: they stand evenly, infinity too.
        names = ["∞" if value == math.inf else number_name(value) for value in values]
        axis.set_xticks(range(len(values)), names)
        axis.set_xlabel(
            "Order p of the norm" if over == "p" else "Temperature T (no unit, log scale)"
        )
        axis.set_ylabel(METRIC_LABELS[metric])
    add_legend(figure, axes)
    save_figure(figure, path)


def save_scatter(
    path: str | os.PathLike,
    first: Mapping[str, ArrayLike],
    second: Mapping[str, ArrayLike],
    *,
    labels: tuple[str, str],
    id_names: Sequence[str],
) -> None:
    """Draw one score against another, one dot an image.

    Args:
        path: Where to.
        first: Set name to the scores on the horizontal axis.
        second: Set name to the scores on the vertical axis.
        labels: What the two axes show.
        id_names: Which of the sets are ID.

    Raises:
        InvalidArgument: If the ending is unknown.
        GradScoreError: If matplotlib is not installed.
        RunError: If the file cannot be written.
    """
    figure, (axis,) = new_figure(path, 1)
    for place, name in enumerate(first):
        is_id = name in id_names
        # The same images for the same run; more dots than this only make a blot.
        step = max(1, len(np.asarray(first[name])) // 1500)
        axis.scatter(
            np.asarray(first[name])[::step],
            np.asarray(second[name])[::step],
            s=9,
            linewidths=0.7,
            marker="o" if is_id else MARKERS[1:][place % 7],
            facecolors=INK if is_id else "none",
            edgecolors=SHADES[place % len(SHADES)],
            alpha=0.6,
            label=f"{name} ({'ID' if is_id else 'OOD'})",
        )
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    add_legend(figure, [axis], markerscale=2)
    save_figure(figure, path)


def _shares(scores: ArrayLike, edges: NDArray) -> NDArray:
    """Return the percentage of scores in each bin; what lies outside counts in the end bins."""
    inside = np.clip(np.asarray(scores, float), edges[0], edges[-1])
    return np.histogram(inside, edges)[0] / len(inside) * 100


def _spread(rows: Sequence[Row], metric: str) -> Any:
    """Return the distances to both ends of the intervals in percent, or None without them."""
    if not _has_intervals(rows, metric):
        return None
    ends = [
        [row[metric] - row[f"{metric}_low"], row[f"{metric}_high"] - row[metric]] for row in rows
    ]
    return 100 * np.maximum(np.array(ends).T, 0)


def _has_intervals(rows: Sequence[Row], metric: str) -> bool:
    return all(row[f"{metric}_low"] is not None for row in rows)
