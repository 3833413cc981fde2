"""How scores are distributed: every set a line of steps, ID filled, and the threshold."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.plots import canvas
from gradscore.plots.style import INK, SHADES, STYLES, as_text, set_label

BINS = 40
CUT = 0.2
"""Share of all scores, in percent, beyond either end of the axis."""
SPIKE = 40
"""Share of one bin, in percent, above which the other bins need a logarithmic axis."""


def save_densities(
    path: str | os.PathLike,
    panels: Mapping[str, Mapping[str, ArrayLike]],
    *,
    roles: Mapping[str, str | None],
    thresholds: Mapping[str, float] | None = None,
    threshold_label: str = "threshold: 95% of ID accepted",
    title: str = "",
    subtitle: str = "",
) -> None:
    """Draw each set's distribution of scores, one panel a score (the paper's Figs. 2 and 7).

    Args:
        path: Where to; the ending chooses the format (.png, .pdf, .svg).
        panels: Name of a score to set name to scores.
        roles: Set name to ``id``, ``ood``, ``fit`` or None.
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
        _draw_panel(axis, sets, roles)
        threshold = (thresholds or {}).get(label)
        if threshold is not None:
            axis.axvline(threshold, color=INK, linewidth=1, label=threshold_label)
        axis.set_xlabel(as_text(label) + axis.get_xlabel())
        if place % canvas.COLUMNS:
            axis.set_ylabel("log scale" if axis.get_yscale() == "log" else "")
    canvas.add_legend(figure, axes)
    canvas.save_figure(figure, path)


def _draw_panel(axis: Any, sets: Mapping[str, ArrayLike], roles: Mapping[str, str | None]) -> None:
    everything = np.concatenate([np.asarray(scores, float) for scores in sets.values()])
    # Single outliers would squeeze everything else into one bin.
    low, high = np.percentile(everything, (CUT, 100 - CUT))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    shares = {name: _shares(scores, edges) for name, scores in sets.items()}
    spiky = max(share.max() for share in shares.values()) > SPIKE
    floor = min(share[share > 0].min() for share in shares.values()) / 2 if spiky else 0
    # The ID set lies below all others.
    others = 0
    for name in sorted(sets, key=lambda name: roles.get(name) != "id"):
        label = set_label(name, roles.get(name))
        steps = {"baseline": floor, "linewidth": 1.4, "label": label}
        if roles.get(name) == "id":
            fill = {"facecolor": "#d9d9d9", "edgecolor": INK}
            axis.stairs(shares[name], edges, fill=True, **fill, **steps)
        else:
            look = {
                "color": SHADES[others % len(SHADES)],
                "linestyle": STYLES[others % len(STYLES)],
            }
            axis.stairs(np.maximum(shares[name], floor), edges, **look, **steps)
            others += 1
    cut = everything.min() < low or everything.max() > high
    axis.set_xlabel(f"\n(the end bins hold the outer {CUT}% too)" if cut else "")
    axis.set_yscale("log" if spiky else "linear")
    axis.set_ylim(floor, 100 if spiky else None)
    axis.set_ylabel(f"Images of the set per bin (%{', log scale' if spiky else ''})")


def _shares(scores: ArrayLike, edges: NDArray) -> NDArray:
    """Return the percentage of scores in each bin; what lies outside counts in the end bins."""
    inside = np.clip(np.asarray(scores, float), edges[0], edges[-1])
    return np.histogram(inside, edges)[0] / len(inside) * 100
