"""Dots: one score against another, one dot an image."""

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from gradscore.plots import canvas
from gradscore.plots.style import Look, as_text

DOTS = 1500
"""Most images of a set that are drawn; more only make a blot."""


def save_scatter(
    path: str | os.PathLike,
    first: Mapping[str, ArrayLike],
    second: Mapping[str, ArrayLike],
    *,
    labels: tuple[str, str],
    looks: Mapping[str, Look],
    title: str = "",
    subtitle: str = "",
) -> None:
    """Draw one score against another, one dot an image.

    Args:
        path: Where to; the ending chooses the format (.png, .pdf, .svg).
        first: Set name to the scores on the horizontal axis.
        second: Set name to the scores on the vertical axis.
        labels: What the two axes show.
        looks: Set name to how it is drawn.
        title: What is shown.
        subtitle: Of which model and sets.

    Raises:
        InvalidArgument: If the ending is unknown.
        RunError: If the file cannot be written.
    """
    figure, (axis,) = canvas.new_figure(
        path, 1, title=title, subtitle=subtitle, width=6.5, height=4.8
    )
    for name, look in ((name, looks[name]) for name in first):
        step = max(1, len(np.asarray(first[name])) // DOTS)
        axis.scatter(
            np.asarray(first[name])[::step],
            np.asarray(second[name])[::step],
            s=9,
            linewidths=0.7,
            marker=look.marker,
            facecolors=look.color if look.is_id else "none",
            edgecolors=look.color,
            alpha=0.6,
            label=look.label,
        )
    axis.set_xlabel(as_text(labels[0]))
    axis.set_ylabel(as_text(labels[1]))
    canvas.add_legend(figure, [axis], markerscale=2)
    canvas.save_figure(figure, path)
