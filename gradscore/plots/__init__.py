"""The paper's figures of any run: which one belongs to which ablation.

The only package that imports matplotlib.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradscore.ablation import ABLATIONS, ablation_specs
from gradscore.errors import InvalidArgument
from gradscore.evaluation import Evaluation, Row, choose_sets
from gradscore.methods import ScoreSpec, column_names
from gradscore.norms import number_name
from gradscore.plots.canvas import check_figure
from gradscore.plots.drawing import (
    save_bars,
    save_densities,
    save_lines,
    save_scatter,
)
from gradscore.recorded import Run, open_store
from gradscore.scoring import Scores, score_sets

__all__ = [
    "check_figure",
    "plot_ablation",
    "plot_comparison",
    "save_bars",
    "save_densities",
    "save_lines",
    "save_scatter",
]

_BARS = {"layers": "layers", "target": "target", "decomposition": "method", "kl": "method"}
_SETTINGS = ("method", "layers", "p", "temperature", "target", "epsilon", "fit", "id")
_SYMBOLS = {"temperature": "T"}
"""What a setting is called in a legend, where it is not by its own name."""
_LABELS = {
    "gradnorm": "GradNorm score\n(nats per unit of weight)",
    "u": "$U=\\|x\\|_1$\n(units of the features)",
    "v": "$V=\\|1-C\\,\\mathrm{softmax}(f/T)\\|_1$\n(no unit)",
    "kl": "KL(uniform || softmax(f/T))\n(nats)",
}
_ONE_HOT = "Minus the one-hot gradient norm\n(nats per unit of weight)"


def plot_ablation(
    kind: str, run: Run | str | os.PathLike, evaluation: Evaluation, path: str | os.PathLike
) -> list[Path]:
    """Draw the figures that belong to an ablation.

    Lines over p and T (Figs. 4 and 5). Bars over layers, targets, factors and KL; beside those
    of targets and factors the densities of the scores (Figs. 2 and 7), and beside those of KL
    its dots against GradNorm (Fig. 6), in a second file ``NAME-scores``.

    Args:
        kind: One of :data:`gradscore.ablation.ABLATIONS`.
        run: The run that was ablated.
        evaluation: What :func:`gradscore.ablation.ablate` gave for ``kind``.
        path: Where to; the ending chooses the format (.png, .pdf, .svg).

    Returns:
        The files written.

    Raises:
        InvalidArgument: If there is no figure for ``kind``, or the ending is unknown.
        GradScoreError: If matplotlib is not installed.
        RunError: If a file cannot be written.
    """
    path = Path(path)
    if kind not in ABLATIONS:
        raise InvalidArgument(
            f"No figure for ablation {kind!r}; there is one for: {', '.join(ABLATIONS)}."
        )
    if kind not in _BARS:
        save_lines(path, evaluation.rows, over=kind)
        return [path]
    save_bars(path, evaluation.rows, by=_row_name(evaluation.rows, (_BARS[kind], "id")))
    if kind == "layers":
        return [path]
    store = open_store(run)
    used = {row["id"] for row in evaluation.rows} | {row["ood"] for row in evaluation.rows}
    ids, oods = choose_sets(store, sorted(used - {"mean"}))
    specs = ablation_specs(kind, store)
    panels = _panels(score_sets(store, [*ids, *oods], specs), specs)
    beside = path.with_name(f"{path.stem}-scores{path.suffix}")
    if kind == "kl":
        (first, across), (second, up) = panels.items()
        save_scatter(beside, across, up, labels=(first, second), id_names=ids)
    else:
        save_densities(beside, panels, id_names=ids)
    return [path, beside]


def plot_comparison(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Draw several runs side by side, one bar a run and method (Table 4).

    Their means are drawn where all have the same OOD sets: others do not compare.

    Args:
        rows: What :func:`gradscore.ablation.compare` gave.
        path: Where to; the ending chooses the format (.png, .pdf, .svg).

    Raises:
        InvalidArgument: If the ending is unknown.
        GradScoreError: If matplotlib is not installed.
        RunError: If the file cannot be written.
    """
    oods = defaultdict(set)
    for row in rows:
        oods[row["run"]].add(row["ood"])
    if any(of_run != oods[rows[0]["run"]] for of_run in oods.values()):
        rows = [row for row in rows if row["ood"] != "mean"]
    several = len({row["model"] for row in rows}) < len(oods)
    save_bars(path, rows, by=_row_name(rows, ("run" if several else "model", *_SETTINGS)))


def _row_name(rows: Sequence[Row], keys: Sequence[str]) -> Callable[[Row], str]:
    """Return what names a row: those of ``keys`` in which the rows differ, or the first."""
    values = {key: {row[key] for row in rows if row.get(key) is not None} for key in keys}
    varied = [key for key in keys if len(values[key]) > 1] or keys[:1]

    def name(row: Row) -> str:
        values = [(key, row.get(key)) for key in varied]
        return ", ".join(
            f"{_SYMBOLS.get(key, key)} = {number_name(value)}"
            if isinstance(value, float)
            else value
            for key, value in values
            if value is not None
        )

    return name


def _panels(scored: Mapping[str, Scores], specs: Sequence[ScoreSpec]) -> dict[str, dict[str, Any]]:
    panels = {}
    for spec, column in zip(specs, column_names(specs), strict=True):
        label = _ONE_HOT if spec.target == "one-hot" else _LABELS[spec.method]
        panels[f"{label}, higher = ID"] = {
            name: scores.columns[column] for name, scores in scored.items()
        }
    return panels
