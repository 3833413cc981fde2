"""Figures of any run: distributions, ROC, ablations, and several runs side by side.

The only package that imports matplotlib.
"""

import os
from collections.abc import Mapping, Sequence

from gradscore.evaluation import Row, choose_sets
from gradscore.methods import RecordedRun, ScoreSpec, column_names
from gradscore.metrics import point_metrics
from gradscore.naming import row_namer
from gradscore.plots.ablations import plot_ablation
from gradscore.plots.bars import save_bars
from gradscore.plots.canvas import check_figure
from gradscore.plots.contents import (
    DIRECTION,
    KEPT,
    looks_of,
    panels_of,
    spec_names,
    subtitle_of,
    thresholds_of,
)
from gradscore.plots.curves import save_roc
from gradscore.plots.distributions import save_densities
from gradscore.plots.dots import save_scatter
from gradscore.plots.sweeps import save_lines
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


def plot_scores(
    run: Run | RecordedRun | str | os.PathLike,
    scored: Mapping[str, Scores],
    specs: Sequence[ScoreSpec],
    path: str | os.PathLike,
    *,
    threshold: float | None = None,
    threshold_label: str = "",
    promise: str = "",
) -> None:
    """Draw how scores are distributed, one panel a score, with a threshold.

    Args:
        run: The run that was scored.
        scored: What :func:`gradscore.scoring.score_sets` gave for ``specs``.
        specs: The scores.
        path: Where to; the ending chooses the format (.png, .pdf, .svg).
        threshold: A detector's; by default the largest that keeps 95% of the ID images.
        threshold_label: What ``threshold`` is.
        promise: A sentence on what ``threshold`` promises.

    Raises:
        InvalidArgument: If the ending is unknown.
        RunError: If the file cannot be written.
    """
    store = open_store(run)
    panels = panels_of(scored, specs)
    ids = [name for name in scored if store.sets[name].role == "id"]
    thresholds = thresholds_of(panels, ids)
    if threshold is not None:
        thresholds = dict.fromkeys(panels, threshold)
    save_densities(
        path,
        panels,
        looks=looks_of(store),
        thresholds=thresholds,
        threshold_label=KEPT if threshold is None else threshold_label,
        title="Distribution of the scores" if len(panels) > 1 else "Distribution of the score",
        subtitle=" ".join(filter(None, (f"{subtitle_of(store, ids)} {DIRECTION}", promise))),
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
    names = dict(zip(specs, spec_names(specs), strict=True))
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
    colors = {name: look.color for name, look in looks_of(store).items()}
    save_roc(path, panels, colors=colors, title=title, subtitle=subtitle_of(store, ids))


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
