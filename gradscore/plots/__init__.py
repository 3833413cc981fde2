"""The paper's figures of any run; the only package that imports matplotlib."""

from gradscore.plots.canvas import check_figure
from gradscore.plots.drawing import (
    save_bars,
    save_densities,
    save_lines,
    save_scatter,
)
from gradscore.plots.figures import plot_ablation, plot_comparison

__all__ = [
    "check_figure",
    "plot_ablation",
    "plot_comparison",
    "save_bars",
    "save_densities",
    "save_lines",
    "save_scatter",
]
