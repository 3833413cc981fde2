"""How scores are distributed: every set a line of steps, ID filled, and the threshold."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.plots import canvas
from gradscore.plots.style import INK, Look, as_text

BINS = 40
CUT = 0.2
"""Share of all scores, in percent, beyond either end of the axis."""
SPIKE = 40
"""Share of one bin, in percent, above which the other bins need a logarithmic axis."""


def save_densities(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, ArrayLike]],
    *,
    looks: Mapping[str, Look],
    thresholds: Mapping[str, float] | None = None,
    threshold_label: str = "",
    title: str = "",
    subtitle: str = "",
) -> None:
    """Draw each set's distribution of scores, one panel a score (the paper's Figs. 2 and 7).

    Args:
        path: Where to; the ending chooses the format (.png, .pdf, .svg).
        panels: Name of a score to set name to scores.
        looks: Set name to how it is drawn.
        thresholds: Name of a score to the threshold that is drawn.
        threshold_label: What the thresholds are.
        title: What is shown.
        subtitle: Of which model and sets.

    Raises:
        InvalidArgument: If the ending is unknown.
        RunError: If the file cannot be written.
    """
    width = 7.0 if len(panels) == 1 else 5.0
    about = {"title": title, "subtitle": subtitle, "width": width}
    figure, axes = canvas.new_figure(path, len(panels), **about)
    for place, (axis, (label, sets)) in enumerate(zip(axes, panels.items(), strict=True)):
        threshold = (thresholds or {}).get(label)
        _draw_panel(axis, sets, looks, threshold)
        if threshold is not None:
            axis.axvline(threshold, color=INK, linewidth=1, label=as_text(threshold_label))
        axis.set_xlabel(as_text(label) + axis.get_xlabel())
        if place % canvas.COLUMNS:
            axis.set_ylabel("log scale" if axis.get_yscale() == "log" else "")
    canvas.add_legend(figure, axes)
    canvas.save_figure(figure, path)


def _draw_panel(
    axis: Any, sets: Mapping[str, ArrayLike], looks: Mapping[str, Look], threshold: float | None
) -> None:
    everything = np.concatenate([np.asarray(scores, float) for scores in sets.values()])
    # Single outliers would squeeze everything else into one bin.
    low, high = np.percentile(everything, (CUT, 100 - CUT))
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    shares = {name: _shares(scores, edges) for name, scores in sets.items()}
    spiky = max(share.max() for share in shares.values()) > SPIKE
    floor = min(share[share > 0].min() for share in shares.values()) / 2 if spiky else 0
    # The ID set lies below all others.
    for name in sorted(sets, key=lambda name: not looks[name].is_id):
        look = looks[name]
        steps = {"baseline": floor, "linewidth": 1.4, "label": look.label}
        if look.is_id:
            fill = {"facecolor": look.fill, "edgecolor": look.color, "linestyle": look.style}
            axis.stairs(shares[name], edges, fill=True, **fill, **steps)
        else:
            drawn = {"color": look.color, "linestyle": look.style}
            axis.stairs(np.maximum(shares[name], floor), edges, **drawn, **steps)
    cut = everything.min() < low or everything.max() > high
    axis.set_xlabel(f"\n(the end bins hold the outer {CUT}% too)" if cut else "")
    axis.set_yscale("log" if spiky else "linear")
    axis.set_ylim(floor, 100 if spiky else None)
    axis.set_ylabel(f"Images of the set per bin (%{', log scale' if spiky else ''})")


def _shares(scores: ArrayLike, edges: NDArray) -> NDArray:
    """Return the percentage of scores in each bin; what lies outside counts in the end bins."""
    inside = np.clip(np.asarray(scores, float), edges[0], edges[-1])
    return np.histogram(inside, edges)[0] / len(inside) * 100
