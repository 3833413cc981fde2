"""The empty figure, its title, its legend and its file; imports matplotlib."""

import math
import os
from pathlib import Path
from textwrap import wrap
from typing import Any

from gradscore.choices import FIGURE_ENDINGS
from gradscore.files import written_aside
from gradscore.plots.style import as_text
from gradscore.tables import check_output

COLUMNS = 3
"""Most panels side by side."""
TITLE_SIZE, TITLE_SHARE = 10.5, 0.94
"""Of a title: its letters, in points, and the share of the figure's width that lines may take."""
_SETTINGS = {"svg.hashsalt": "gradscore", "svg.fonttype": "path"}
"""Names within an SVG do not depend on chance, and letters not on the reader's fonts."""


def check_figure(path: str | os.PathLike) -> None:
    """Refuse a figure that could not be written, before anything is computed for it.

    Raises:
        InvalidArgument: If the ending is none of :data:`FIGURE_ENDINGS`.
        RunError: If its folder is absent or may not be written, or it is no file to replace.
    """
    check_output(path, FIGURE_ENDINGS)


def new_figure(
    path: str | os.PathLike,
    panels: int,
    *,
    title: str,
    subtitle: str = "",
    width: float = 5.0,
    height: float = 3.8,
) -> tuple[Any, list[Any]]:
    """Return a figure that can go to ``path``, and the axes of its panels.

    Args:
        path: Where it will go.
        panels: How many panels, at most :data:`COLUMNS` side by side.
        title: What is shown.
        subtitle: Of which model and sets.
        width: Of a panel, in inches.
        height: Of a panel, in inches.
    """
    check_figure(path)
    from matplotlib.figure import Figure

    columns = min(panels, COLUMNS)
    lines = math.ceil(panels / columns)
    figure = Figure(figsize=(width * columns, height * lines + 0.6), layout="constrained", dpi=150)
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[panels:]:
        axis.set_axis_off()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    room = TITLE_SHARE * 72 * width * columns  # points
    text = "\n".join(line for part in (title, subtitle) for line in _lines(as_text(part), room))
    if text:
        figure.suptitle(text, x=0.01, ha="left", fontsize=TITLE_SIZE, linespacing=1.4)
    return figure, axes[:panels]


def _lines(text: str, room: float) -> list[str]:
    """Return a text in lines of at most some points, by the width of its own average letter."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=TITLE_SIZE)
    width, *_ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    most = max(1, int(len(text) * room / max(width, 1)))
    return wrap(text, most, break_on_hyphens=False)


def add_legend(figure: Any, axes: list[Any], **how: Any) -> None:
    """Name the curves of the first panel below all panels, where they hide nothing."""
    handles, labels = axes[0].get_legend_handles_labels()
    widest = 0.6 + 0.08 * max(map(len, labels))  # inches
    lines = math.ceil(len(labels) / max(1, figure.get_figwidth() // widest))
    how |= {"ncols": math.ceil(len(labels) / lines), "columnspacing": 1.5}
    figure.legend(handles, labels, frameon=False, loc="outside lower left", **how)


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure; equal ones give equal bytes.

    Raises:
        RunError: If the file cannot be written.
    """
    from matplotlib import rc_context

    # Without the version and the date that matplotlib adds, equal figures are equal files.
    blank = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    ending = Path(path).suffix.lower()
    with written_aside(path) as file, rc_context(_SETTINGS):
        figure.savefig(file, format=ending[1:], metadata=blank[ending])
