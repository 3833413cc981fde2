"""The empty figure, its legend and its file, and how names stand in it; imports matplotlib."""

import importlib.util
import math
import os
from pathlib import Path
from typing import Any

from gradscore.choices import FIGURE_ENDINGS
from gradscore.errors import GradScoreError
from gradscore.escapes import printable
from gradscore.files import written_aside
from gradscore.tables import check_output


def check_figure(path: str | os.PathLike) -> None:
    """Refuse a figure that could not be drawn, before anything is computed for it.

    Raises:
        InvalidArgument: If the ending is none of :data:`FIGURE_ENDINGS`.
        RunError: If its folder is absent or may not be written, or it is no file to replace.
        GradScoreError: If matplotlib is not installed.
    """
    check_output(path, FIGURE_ENDINGS)
    if importlib.util.find_spec("matplotlib") is None:
        raise GradScoreError(
            "Figures need matplotlib; install it beside gradscore: `pip install matplotlib`."
        )


def as_text(name: str) -> str:
    """Return a name as a figure shows it: no formula, and not hidden for its first character."""
    shown = printable(name).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def new_figure(path: str | os.PathLike, panels: int, width: float = 5.0) -> tuple[Any, list[Any]]:
    """Return a figure that can go to ``path``, and the axes of its panels, side by side."""
    check_figure(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, 3.8), layout="constrained", dpi=150)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def add_legend(figure: Any, axes: list[Any], **how: Any) -> None:
    """Name the curves of the first panel above all panels, where they hide nothing."""
    handles, labels = axes[0].get_legend_handles_labels()
    widest = 0.6 + 0.08 * max(map(len, labels))  # inches
    lines = math.ceil(len(labels) / max(1, figure.get_figwidth() // widest))
    how |= {"ncols": math.ceil(len(labels) / lines), "columnspacing": 1.5}
    figure.legend(handles, labels, frameon=False, loc="outside upper left", **how)


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Write a figure; equal ones give equal bytes.

    Raises:
        RunError: If the file cannot be written.
    """
    # Without the version and the date that matplotlib adds, equal figures are equal files.
    blank = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    ending = Path(path).suffix.lower()
    with written_aside(path) as file:
        figure.savefig(file, format=ending[1:], metadata=blank[ending])
