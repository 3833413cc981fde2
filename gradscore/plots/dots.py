"""Dots: one score against another, one dot an image."""

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from gradscore.plots import canvas
from gradscore.plots.style import INK, MARKERS, SHADES, as_text, set_label

DOTS = 1500
"""Most images of a set that are drawn; more only make a blot."""


def save_scatter(
    path: str | os.PathLike,
    first: Mapping[str, ArrayLike],
    second: Mapping[str, ArrayLike],
    *,
    labels: tuple[str, str],
    roles: Mapping[str, str | None],
    title: str = "",
    subtitle: str = "",
) -> None:
    """Draw one score against another, one dot an image.

    Args:
        path: Where to; the ending chooses the format (.png, .pdf, .svg).
        first: Set name to the scores on the horizontal axis.
        second: Set name to the scores on the vertical axis.
        labels: What the two axes show.
        roles: Set name to ``id``, ``ood``, ``fit`` or None.
        title: What is shown.
        subtitle: Of which model and sets.

    Raises:
        InvalidArgument: If the ending is unknown.
        RunError: If the file cannot be written.
    """
    figure, (axis,) = canvas.new_figure(
        path, 1, title=title, subtitle=subtitle, width=5.5, height=4.4
    )
    others = 0
    for name in first:
        is_id = roles.get(name) == "id"
        step = max(1, len(np.asarray(first[name])) // DOTS)
        color = INK if is_id else SHADES[others % len(SHADES)]
        marker = "o" if is_id else MARKERS[1:][others % (len(MARKERS) - 1)]
        others += not is_id
        axis.scatter(
            np.asarray(first[name])[::step],
            np.asarray(second[name])[::step],
            s=9,
            linewidths=0.7,
            marker=marker,
            facecolors=INK if is_id else "none",
            edgecolors=color,
            alpha=0.6,
            label=set_label(name, roles.get(name)),
        )
    axis.set_xlabel(as_text(labels[0]))
    axis.set_ylabel(as_text(labels[1]))
    canvas.add_legend(figure, [axis], markerscale=2)
    canvas.save_figure(figure, path)
