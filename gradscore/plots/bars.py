"""Bars: one group a score with its settings, one bar an OOD set or a run."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gradscore.evaluation import Row
from gradscore.plots import canvas
from gradscore.plots.style import FILLS, HATCHES, INK, MEAN, METRIC_LABELS, Look, as_text

BAR = 0.17
"""Height of a bar, in inches."""
TOGETHER = 0.8
"""Share of a group's height that its bars take."""


def save_bars(
    path: str | os.PathLike,
    rows: Sequence[Row],
    *,
    by: Callable[[Row], str],
    across: Callable[[Row], str],
    looks: Mapping[str, Look] | None = None,
    title: str = "",
    subtitle: str = "",
) -> None:
    """Draw AUROC and FPR95 (the paper's Fig. 3), one group of bars a score.

    Args:
        path: Where to.
        rows: Rows of an evaluation; a bar that a group lacks is left out.
        by: What a row's group is called, beside the bars.
        across: What a row's bar is called, in the legend.
        looks: OOD set to how it is drawn, where the bars are OOD sets.
        title: What is shown.
        subtitle: Of which model and sets.

    Raises:
        InvalidArgument: If the ending is unknown.
        RunError: If the file cannot be written.
    """
    groups = list(dict.fromkeys(map(by, rows)))
    bars = list(dict.fromkeys(map(across, rows)))
    if all(has_intervals(rows, metric) for metric in METRIC_LABELS):
        subtitle += " Thin lines: 95% intervals."
    figure, axes = canvas.new_figure(
        path,
        2,
        title=title,
        subtitle=subtitle,
        width=4.6,
        height=0.8 + BAR / TOGETHER * len(groups) * max(2, len(bars)),
    )
    width = TOGETHER / len(bars)
    for axis, metric in zip(axes, METRIC_LABELS, strict=True):
        for place, name in enumerate(bars):
            of_bar = {by(row): row for row in rows if across(row) == name}
            at = np.array([groups.index(group) for group in of_bar], float)
            axis.barh(
                at + (place - (len(bars) - 1) / 2) * width,
                [100 * row[metric] for row in of_bar.values()],
                width * 0.92,
                xerr=_spread(list(of_bar.values()), metric),
                **_look_of_bar(name, place, looks or {}),
                edgecolor=INK,
                linewidth=0.7,
                error_kw={"elinewidth": 0.8, "ecolor": INK},
                label=as_text(name),
            )
        axis.set_xlabel(METRIC_LABELS[metric])
        axis.set_xlim(0, 100)
        axis.set_ylim(len(groups) - 0.5, -0.5)  # the first group on top
        axis.set_yticks(range(len(groups)), map(_in_lines, groups))
    axes[1].tick_params(labelleft=False)
    if len(bars) > 1:
        canvas.add_legend(figure, [axes[0]])
    canvas.save_figure(figure, path)


def _look_of_bar(name: str, place: int, looks: Mapping[str, Look]) -> dict[str, str]:
    """Return colour and hatch of a bar: those of its set, or else of its place."""
    if name in looks:
        return {"color": looks[name].fill, "hatch": looks[name].hatch}
    if name == "mean":
        return {"color": MEAN, "hatch": ""}
    return {"color": FILLS[place % len(FILLS)], "hatch": HATCHES[place % len(HATCHES)]}


def _in_lines(name: str) -> str:
    return "\n".join(map(as_text, name.split("\n")))


def has_intervals(rows: Sequence[Row], metric: str) -> bool:
    """Return whether all rows hold the interval of a metric."""
    return all(row[f"{metric}_low"] is not None for row in rows)


def _spread(rows: Sequence[Row], metric: str) -> Any:
    """Return the distances to both ends of the intervals in percent, or None without them."""
    if not has_intervals(rows, metric):
        return None
    ends = [
        [row[metric] - row[f"{metric}_low"], row[f"{metric}_high"] - row[metric]] for row in rows
    ]
    return 100 * np.maximum(np.array(ends).T, 0)
