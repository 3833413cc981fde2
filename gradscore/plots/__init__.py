"""Figures of any run: distributions, ROC, and which figure belongs to which ablation.

The only package that imports matplotlib.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradscore.ablation import ABLATIONS, ablation_specs
from gradscore.errors import InvalidArgument
from gradscore.evaluation import Evaluation, Row, choose_sets
from gradscore.methods import RecordedRun, ScoreSpec, column_names
from gradscore.metrics import point_metrics
from gradscore.naming import row_namer
from gradscore.plots.bars import save_bars
from gradscore.plots.canvas import check_figure
from gradscore.plots.curves import save_lines, save_roc
from gradscore.plots.distributions import save_densities
from gradscore.plots.dots import save_scatter
from gradscore.recorded import Run, open_store
from gradscore.scoring import Scores, score_sets

__all__ = [
    "check_figure",
    "plot_ablation",
    "plot_comparison",
    "plot_roc",
    "plot_scores",
    "save_bars",
    "save_densities",
    "save_lines",
    "save_roc",
    "save_scatter",
]

CURVES = 6
"""Most scores in one ROC figure."""
BARS = 8
"""Most OOD sets with a bar of their own; of more, the mean is drawn."""
_SWEEPS = {"p": "GradNorm by the order of its norm", "temperature": "GradNorm by temperature"}
_TITLES = {
    "layers": "GradNorm by the parameters whose gradient is taken",
    "target": "GradNorm by the target of its loss",
    "decomposition": "GradNorm and its factors U and V",
    "kl": "GradNorm and the divergence whose gradient it is",
}
_BY = {"layers": "layers", "target": "target", "decomposition": "method", "kl": "method"}
_LABELS = {
    "gradnorm": "GradNorm score",
    "u": "U, norm of the features",
    "v": "V, distance of the softmax from uniform",
    "kl": "KL(uniform || softmax)",
}
_DIRECTION = "Higher = in-distribution."


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
    subtitle = _subtitle(store, [row["id"] for row in rows])
    if kind in _SWEEPS:
        save_lines(path, rows, over=kind, title=_SWEEPS[kind], subtitle=subtitle)
        return [path]
    save_bars(
        path,
        _few_sets(rows),
        by=row_namer(rows, (_BY[kind], "id"), ()),
        across=lambda row: row["ood"],
        title=_TITLES[kind],
        subtitle=subtitle,
    )
    if kind == "layers":
        return [path]
    used = {row["id"] for row in rows} | {row["ood"] for row in rows}
    ids, oods = choose_sets(store, sorted(used - {"mean"}))
    specs = ablation_specs(kind, store)
    panels = _panels(score_sets(store, [*ids, *oods], specs), specs)
    how = {"roles": _roles(store, [*ids, *oods]), "title": _TITLES[kind]}
    how["subtitle"] = f"{subtitle} {_DIRECTION}"
    beside = path.with_name(f"{path.stem}-scores{path.suffix}")
    if kind == "kl":
        (first, across), (second, up) = panels.items()
        save_scatter(beside, across, up, labels=(first, second), **how)
    else:
        save_densities(beside, panels, thresholds=_thresholds(panels, ids), **how)
    return [path, beside]


def plot_scores(
    run: Run | str | os.PathLike,
    scored: Mapping[str, Scores],
    specs: Sequence[ScoreSpec],
    path: str | os.PathLike,
) -> None:
    """Draw how scores are distributed, one panel a score, with the threshold of FPR95.

    Args:
        run: The run that was scored.
        scored: What :func:`gradscore.scoring.score_sets` gave for ``specs``.
        specs: The scores.
        path: Where to; the ending chooses the format (.png, .pdf, .svg).

    Raises:
        InvalidArgument: If the ending is unknown.
        RunError: If the file cannot be written.
    """
    store = open_store(run)
    panels, roles = _panels(scored, specs), _roles(store, scored)
    ids = [name for name, role in roles.items() if role == "id"]
    save_densities(
        path,
        panels,
        roles=roles,
        thresholds=_thresholds(panels, ids),
        title="Distribution of the scores" if len(panels) > 1 else "Distribution of the score",
        subtitle=f"{_subtitle(store, ids)} {_DIRECTION}",
    )


def plot_roc(
    run: Run | str | os.PathLike,
    specs: Sequence[ScoreSpec],
    path: str | os.PathLike,
    *,
    sets: Sequence[str] | None = None,
) -> None:
    """Draw the ROC of scores, one panel an OOD set; of many scores, the best by mean AUROC.

    Args:
        run: The run, or its directory.
        specs: What to score by.
        path: Where to; the ending chooses the format (.png, .pdf, .svg).
        sets: Names of the sets to use; by default every set with a role.

    Raises:
        InvalidArgument: If the ending is unknown.
        NotRecorded: If the run does not hold what a spec needs.
        RunError: If there is no ID or no OOD set among them, or the file cannot be written.
    """
    check_figure(path)
    store = open_store(run)
    ids, oods = choose_sets(store, sets)
    specs = list(dict.fromkeys(specs))
    scored = score_sets(store, [*ids, *oods], specs)
    pairs = {
        (name, ood, spec): (scored[name].columns[column], scored[ood].columns[column])
        for name in ids
        for ood in oods
        for spec, column in zip(specs, column_names(specs), strict=True)
    }
    figures = {key: point_metrics(*pair)[0] for key, pair in pairs.items()}
    ranked = sorted(specs, key=lambda s: -sum(v for k, v in figures.items() if k[2] == s))
    shown = ranked[:CURVES]
    if len(specs) > CURVES and not any(spec.method == "gradnorm" for spec in shown):
        shown[-1:] = [spec for spec in ranked if spec.method == "gradnorm"][:1] or shown[-1:]
    names = dict(zip(specs, _spec_names(specs), strict=True))
    panels = {
        (ood if len(ids) == 1 else f"{name} against {ood}"): {
            names[spec]: pairs[name, ood, spec] for spec in shown
        }
        for name in ids
        for ood in oods
    }
    left_out = len(specs) - len(shown)
    title = f"ROC of the {len(shown)} best of {len(specs)} scores" if left_out else "ROC"
    if left_out and shown[-1] != ranked[CURVES - 1]:
        title = f"ROC of the {CURVES - 1} best of {len(specs)} scores, and of gradnorm"
    save_roc(path, panels, title=title, subtitle=_subtitle(store, ids))


def plot_comparison(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """Draw several runs side by side, a group of bars a score, a bar a run (Table 4).

    Where all runs have the same OOD sets their mean is drawn, else every set apart.

    Args:
        rows: What :func:`gradscore.ablation.compare` gave.
        path: Where to; the ending chooses the format (.png, .pdf, .svg).

    Raises:
        InvalidArgument: If the ending is unknown.
        RunError: If the file cannot be written.
    """
    oods: dict[str, set[str]] = {}
    for row in rows:
        oods.setdefault(row["run"], set()).add(row["ood"])
    together = all(of_run == oods[rows[0]["run"]] for of_run in oods.values())
    drawn = [row for row in rows if (row["ood"] == "mean") == together]
    if together:
        drawn.sort(key=lambda row: -row["auroc"])
    several = len({row["model"] for row in rows}) < len(oods)
    of_runs = [row["run" if several else "model"] for row in rows]
    drawn.sort(key=lambda row: of_runs.index(row["run" if several else "model"]))
    names = ("method", "id") if together else ("method", "ood", "id")
    count = len(oods[rows[0]["run"]] - {"mean"})
    what = f"mean of {count} OOD sets" if together and count > 1 else "each OOD set"
    save_bars(
        path,
        drawn,
        by=row_namer(drawn, names),
        across=row_namer(rows, ("run" if several else "model",), ()),
        title=f"{len(oods)} runs side by side: {what}",
        subtitle=f"ID: {', '.join(dict.fromkeys(row['id'] for row in rows))}.",
    )


def _subtitle(store: RecordedRun, ids: Sequence[str]) -> str:
    """Return which model and ID sets a figure is of."""
    named = ", ".join(
        f"{name} ({store.sets[name].recorded():,} images)" for name in dict.fromkeys(ids)
    )
    return f"Model {store.info.model}." + (f" ID: {named}." if named else "")


def _roles(store: RecordedRun, sets: Sequence[str] | Mapping[str, Any]) -> dict[str, str | None]:
    return {name: store.sets[name].role for name in sets}


def _few_sets(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of every OOD set, or of the mean where there are too many."""
    oods = {row["ood"] for row in rows}
    if len(oods) == 2:
        return [row for row in rows if row["ood"] != "mean"]
    return [row for row in rows if len(oods) <= BARS or row["ood"] == "mean"]


def _thresholds(panels: Mapping[str, Mapping[str, Any]], ids: Sequence[str]) -> dict[str, float]:
    """Return for each panel the largest threshold that accepts 95% of the ID images."""
    from numpy import concatenate, sort

    if not ids:
        return {}
    together = {label: concatenate([sets[name] for name in ids]) for label, sets in panels.items()}
    return {
        label: float(sort(scores)[len(scores) - (95 * len(scores) + 99) // 100])
        for label, scores in together.items()
    }


def _spec_names(specs: Sequence[ScoreSpec]) -> list[str]:
    """Return each score's method, with the settings in which those of one method differ."""
    rows = [{"method": spec.method, "spec": spec} | vars(spec) for spec in specs]
    return [row_namer(rows, ("method",))(row) for row in rows]


def _panels(scored: Mapping[str, Scores], specs: Sequence[ScoreSpec]) -> dict[str, dict[str, Any]]:
    panels = {}
    for spec, name, column in zip(specs, _spec_names(specs), column_names(specs), strict=True):
        label = name.replace(spec.method, _LABELS.get(spec.method, spec.method), 1)
        panels[label] = {name: scores.columns[column] for name, scores in scored.items()}
    return panels
