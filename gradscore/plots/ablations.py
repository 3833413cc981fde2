"""Which figures belong to which ablation."""

import os
from collections.abc import Sequence
from pathlib import Path

from gradscore.ablation import ABLATIONS, ablation_specs
from gradscore.errors import InvalidArgument
from gradscore.evaluation import Evaluation, Row, choose_sets
from gradscore.naming import row_namer
from gradscore.plots.bars import save_bars
from gradscore.plots.contents import (
    DIRECTION,
    KEPT,
    looks_of,
    panels_of,
    subtitle_of,
    thresholds_of,
)
from gradscore.plots.distributions import save_densities
from gradscore.plots.dots import save_scatter
from gradscore.plots.sweeps import save_lines
from gradscore.recorded import Run, open_store
from gradscore.scoring import score_sets

BARS = 8
"""Most OOD sets with a bar of their own; of more, the mean is drawn."""
_SWEEPS = {"p": "GradNorm by the order of its norm", "temperature": "GradNorm by temperature"}
_TITLES = {
    "layers": "GradNorm by the parameters whose gradient is taken",
    "target": "GradNorm by the target of its loss",
    "decomposition": "GradNorm = U V / (C T), and its factors U and V alone (C classes)",
    "kl": "GradNorm, and the divergence whose gradient it is",
}
_BY = {"layers": "layers", "target": "target", "decomposition": "method", "kl": "method"}
_GROUPS = {
    "gradnorm": "GradNorm",
    "u": "U\nnorm of the features",
    "v": "V\ndistance of the\nsoftmax from uniform",
    "kl": "KL(uniform || softmax)",
}
"""What scores are called beside their bars."""


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
        RunError: If a file cannot be written.
    """
    path = Path(path)
    if kind not in ABLATIONS:
        raise InvalidArgument(
            f"No figure for ablation {kind!r}; there is one for: {', '.join(ABLATIONS)}."
        )
    store = open_store(run)
    rows = evaluation.rows
    subtitle, looks = subtitle_of(store, [row["id"] for row in rows]), looks_of(store)
    if kind in _SWEEPS:
        save_lines(path, rows, over=kind, looks=looks, title=_SWEEPS[kind], subtitle=subtitle)
        return [path]
    named = [Row(row.spec, row | {"method": _GROUPS[row["method"]]}) for row in rows]
    save_bars(
        path,
        _few_sets(named),
        by=row_namer(named, (_BY[kind], "id"), ()),
        across=lambda row: row["ood"],
        looks=looks,
        title=_TITLES[kind],
        subtitle=subtitle,
    )
    if kind == "layers":
        return [path]
    used = {row["id"] for row in rows} | {row["ood"] for row in rows}
    ids, oods = choose_sets(store, used - {"mean"})
    specs = ablation_specs(kind, store)
    panels = panels_of(score_sets(store, [*ids, *oods], specs), specs)
    how = {"looks": looks, "title": _TITLES[kind]}
    how["subtitle"] = f"{subtitle} {DIRECTION}"
    beside = path.with_name(f"{path.stem}-scores{path.suffix}")
    if kind == "kl":
        (first, across), (second, up) = panels.items()
        save_scatter(beside, across, up, labels=(first, second), **how)
    else:
        how |= {"thresholds": thresholds_of(panels, ids), "threshold_label": KEPT}
        save_densities(beside, panels, **how)
    return [path, beside]


def _few_sets(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of every OOD set, or of the mean where there are too many."""
    oods = {row["ood"] for row in rows}
    if len(oods) == 2:
        return [row for row in rows if row["ood"] != "mean"]
    return [row for row in rows if len(oods) <= BARS or row["ood"] == "mean"]
