"""What a run gives to its figures: subtitle, looks of its sets, panels and thresholds."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradscore.methods import RecordedRun, ScoreSpec, column_names
from gradscore.metrics import keeping_threshold
from gradscore.naming import row_namer
from gradscore.plots.style import Look, set_looks
from gradscore.scoring import Scores

_LABELS = {
    "gradnorm": "GradNorm score",
    "u": "U, norm of the features",
    "v": "V, distance of the softmax from uniform",
    "kl": "KL(uniform || softmax)",
}
DIRECTION = "Higher = in-distribution."
KEPT = "keeps 95% of the ID images drawn here (not a detector's threshold)"
"""What a line is that is no detector's threshold."""


def subtitle_of(store: RecordedRun, ids: Sequence[str]) -> str:
    """Return which model and ID sets a figure is of."""
    named = ", ".join(
        f"{name} ({store.sets[name].recorded():,} images)" for name in dict.fromkeys(ids)
    )
    return f"Model {store.info.model}." + (f" ID: {named}." if named else "")


def looks_of(store: RecordedRun) -> dict[str, Look]:
    """Return how each set is drawn, the same in all figures of a run."""
    return set_looks({name: entry.role for name, entry in store.sets.items()})


def thresholds_of(panels: Mapping[str, Mapping[str, Any]], ids: Sequence[str]) -> dict[str, float]:
    """Return for each panel the largest threshold that accepts 95% of the ID images."""
    from numpy import concatenate

    if not ids:
        return {}
    together = {label: concatenate([sets[name] for name in ids]) for label, sets in panels.items()}
    return {label: keeping_threshold(scores) for label, scores in together.items()}


def spec_names(specs: Sequence[ScoreSpec]) -> list[str]:
    """Return each score's method, with the settings in which those of one method differ."""
    rows = [{"method": spec.method, "spec": spec} | vars(spec) for spec in specs]
    return [row_namer(rows, ("method",))(row) for row in rows]


def panels_of(
    scored: Mapping[str, Scores], specs: Sequence[ScoreSpec]
) -> dict[str, dict[str, Any]]:
    """Return what each score is called to its scores by set."""
    panels = {}
    for spec, name, column in zip(specs, spec_names(specs), column_names(specs), strict=True):
        label = name.replace(spec.method, _LABELS.get(spec.method, spec.method), 1)
        panels[label] = {name: scores.columns[column] for name, scores in scored.items()}
    return panels
