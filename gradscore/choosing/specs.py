"""Which scores a choice compares, and what each costs beside the forward."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from gradscore.errors import GradScoreError, NotRecorded
from gradscore.methods import METHODS, RecordedRun, ScoreSpec
from gradscore.methods.gradnorm import recorded_groups
from gradscore.run.contents import BANKS
from gradscore.run.layout import BLOCKS

ORDERS, TEMPERATURES = (0.5, 1.0, 2.0), (1.0, 2.0)
"""At which GradNorm of the last layer is asked."""


def choice_specs(run: RecordedRun, notes: list[str], fit: str | None = None) -> list[ScoreSpec]:
    """Return every score that a run can give without another option than a set to fit to.

    Args:
        run: The run.
        notes: Takes which methods are left out, and what was learned from.
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
    told: dict[str, dict[str, None]] = defaultdict(dict)
    able = []
    for spec in dict.fromkeys(specs):
        try:
            plan = spec.definition.plan(spec, run)
            if plan.learned_from:
                plan.fit()  # what cannot be learned must not take the other scores along
            remarks = (plan.notice, *plan.find_remarks())
            able.append(spec)
        except GradScoreError as error:
            remarks = (f"left out. {error}",)
        for remark in remarks if spec.definition.required != ("fit",) else ():
            told[remark][spec.method] = None
    told.pop("", None)
    for remark, methods in told.items():
        end = "" if remark.endswith(".") else "."
        notes.append(f"{', '.join(methods)}: {remark}{end}")
    return able


def fitting_specs(
    run: RecordedRun, specs: Sequence[ScoreSpec], sets: Sequence[str], notes: list[str]
) -> list[ScoreSpec]:
    """Return the scores that every one of some sets can be given; others are told of.

    Args:
        run: The run.
        specs: The scores.
        sets: Names of ID sets and of their surrogates.
        notes: Takes which scores are left out.
    """
    able, lacking = [], defaultdict(list)
    for spec in specs:
        passes = spec.definition.plan(spec, run).passes
        without = [n for p in passes for n in sets if not run.sets[n].complete(p)]
        if without:
            lacking[passes, without[0]].append(spec)
        else:
            able.append(spec)
    for (passes, name), left_out in lacking.items():
        methods = ", ".join(dict.fromkeys(spec.method for spec in left_out))
        notes.append(
            f"{methods}: left out, {len(left_out)} of its scores need {', '.join(passes)}, which "
            f"{name} lacks."
        )
    return able


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


def _labelled_set(run: RecordedRun, fit: str | None) -> str | None:
    """Return the labelled set that is no test set, or None."""
    for name, entry in run.sets.items():
        if entry.role == "fit" and fit in (None, name) and entry.complete("base"):
            labels = (block["label"] for block in run.blocks(name, fields=("label",)))
            if any(np.any(np.asarray(part) >= 0) for part in labels):
                return name
    return None
