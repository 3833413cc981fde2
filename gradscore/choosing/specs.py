"""Which scores a choice compares, and what each costs beside the forward."""

from contextlib import suppress

import numpy as np

from gradscore.errors import GradScoreError, NotRecorded
from gradscore.methods import METHODS, RecordedRun, ScoreSpec
from gradscore.methods.gradnorm import recorded_groups
from gradscore.run.layout import BLOCKS

ORDERS, TEMPERATURES = (0.5, 1.0, 2.0), (1.0, 2.0)
"""At which GradNorm of the last layer is asked."""
BANKS = ("knn", "nnguide")


def choice_specs(run: RecordedRun, fit: str | None = None) -> list[ScoreSpec]:
    """Return every score that a run can give without another option than a set to fit to.

    Args:
        run: The run.
        fit: The set that methods learn from; by default as they choose it.
    """
    specs = []
    for method in METHODS.values():
        how = {"fit": fit} if "fit" in method.options and fit is not None else {}
        if method.required:
            how = {"fit": _labelled_set(run, fit)}
            if how["fit"] is None or set(method.required) != {"fit"}:
                continue
        with suppress(GradScoreError):
            specs.append(ScoreSpec(method.name, **how))
        if "two_sided" in method.options:
            specs.append(ScoreSpec(method.name, two_sided=True, **how))
    specs += [ScoreSpec("gradnorm", p=p, temperature=t) for p in ORDERS for t in TEMPERATURES]
    with suppress(NotRecorded):
        specs += [ScoreSpec("gradnorm", layers=layers) for layers in recorded_groups(run)]
    return [spec for spec in dict.fromkeys(specs) if _can(spec, run)]


def cost(spec: ScoreSpec, run: RecordedRun) -> int:
    """Return what a score costs beside the forward: only the order counts.

    Logits, then features, then block means, then a bank of features, then gradients.
    """
    plan = spec.definition.plan(spec, run)
    if spec.method in BANKS:
        return 3
    if plan.passes:
        return 2 if plan.passes == (BLOCKS,) else 4
    return int("features" in plan.fields)


def _can(spec: ScoreSpec, run: RecordedRun) -> bool:
    with suppress(GradScoreError):
        spec.definition.plan(spec, run)
        return True
    return False


def _labelled_set(run: RecordedRun, fit: str | None) -> str | None:
    """Return the labelled set that is no test set, or None."""
    for name, entry in run.sets.items():
        if entry.role == "fit" and fit in (None, name) and entry.complete("base"):
            labels = (block["label"] for block in run.blocks(name, fields=("label",)))
            if any(np.any(np.asarray(part) >= 0) for part in labels):
                return name
    return None
