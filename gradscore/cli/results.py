"""Scores of runs on the command line: which are meant, and what is shown and noticed of them."""

import shlex
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import closing, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from gradscore.cli.console import notice, say
from gradscore.cli.options import import_methods

if TYPE_CHECKING:
    from gradscore.evaluation import Row
    from gradscore.methods import RecordedRun, ScoreSpec
    from gradscore.run import RunStore

ROWS = 256
"""How many rows of a set are looked at to judge its logits."""


def choose_specs(
    run: "RecordedRun", methods: Sequence[str], options: dict[str, Any], *, quiet: bool = False
) -> "list[ScoreSpec]":
    """Return a spec for each of ``methods``, with the options that it honours.

    Without ``methods`` every method is taken that needs no further option and that the run can
    score by; those left out are named in a notice.
    """
    from gradscore.errors import ModelError, NotRecorded
    from gradscore.methods import METHODS, make_specs

    import_methods(methods)
    if methods:
        return make_specs(methods, **options)
    given = {name for name, value in options.items() if value is not None}
    possible = [m.name for m in METHODS.values() if set(m.required) <= given]
    specs: list[ScoreSpec] = []
    left_out: dict[str, dict[str, None]] = defaultdict(dict)
    for spec in make_specs(possible, **options):
        try:
            plan = spec.definition.plan(spec, run)
            if _can_learn(plan, left_out, spec):
                specs.append(spec)
        except (ModelError, NotRecorded) as error:
            left_out[str(error)][spec.method] = None
    for error, methods in left_out.items():
        notice(f"Left out {', '.join(methods)}. {error}", quiet=quiet)
    return specs


def _can_learn(plan: Any, left_out: dict[str, dict[str, None]], spec: "ScoreSpec") -> bool:
    """Say whether a score can be learned; else note why it is left out."""
    from gradscore.errors import InvalidArgument

    try:
        if plan.learned_from:
            plan.fit()
    except InvalidArgument as error:
        left_out[str(error)][spec.method] = None
        return False
    return True


def notice_outputs(run: "RecordedRun", sets: Collection[str], *, quiet: bool = False) -> None:
    """Say where what the run's model returned can hardly be logits."""
    from torch import as_tensor

    from gradscore.errors import RunError
    from gradscore.outputs import OutputWatch

    fault, watch = run.info.notice, OutputWatch()
    for name in sorted(run.sets.keys() & sets):
        if fault or watch.settled:
            break
        with (
            suppress(RunError),
            closing(run.blocks(name, fields=("logits",), rows=ROWS)) as blocks,
        ):
            for block in islice(blocks, 1):
                fault = watch.fault(as_tensor(block["logits"]))
    if fault:
        notice(f"{run.info.model}: {fault}.", quiet=quiet)


def notice_chance(run: "RecordedRun", sets: Collection[str], *, quiet: bool = False) -> None:
    """Name the ID sets whose accuracy is no better than guessing: something does not fit."""
    from gradscore.accuracy import chance_accuracies, chance_cause

    cause = chance_cause(run.info)
    for name, figure in chance_accuracies(run, sets).items() if not quiet else ():
        notice(
            f"{name}: ID accuracy {figure} is chance for {run.info.classes:,} classes: {cause}."
        )


def notice_fits(
    run: "RecordedRun", specs: "Sequence[ScoreSpec]", sets: Collection[str], *, quiet: bool = False
) -> None:
    """Say what methods learned from, and which of ``sets`` one knows better than any others."""
    from gradscore.methods.fitted import repeat_notices

    if quiet:
        return
    learned_how = defaultdict(dict)
    for spec in specs:
        plan = spec.definition.plan(spec, run)
        for how in (plan.notice, *plan.find_remarks()):
            learned_how[how][spec.method] = None
    for how, methods in learned_how.items():
        if how:
            notice(f"{', '.join(methods)}: {how}.", quiet=quiet)
    for sentence in repeat_notices(run, specs, sorted(run.sets.keys() & set(sets))):
        notice(sentence, quiet=quiet)
    learners = defaultdict(dict)
    for spec in specs:
        for name in spec.fit_sets():
            learners[name][spec.method] = None
    for name, methods in learners.items():
        if name in sets:
            learned = " and ".join(methods)
            notice(f"Figures of {name} are optimistic: {learned} learned from it.", quiet=quiet)


def notice_intervals(rows: "Sequence[Row]", *, quiet: bool = False) -> None:
    """Say what the intervals are, where they are not those of the bootstrap."""
    from gradscore.pivot import intervals_text

    if any("intervals" in row for row in rows):
        notice(intervals_text(rows), quiet=quiet)


def notice_written(*paths: object, quiet: bool = False) -> None:
    """Name the files that a command has written."""
    notice(f"Wrote {', '.join(map(str, paths))}.", quiet=quiet)


def evaluated_sets(rows: "Sequence[Row]") -> set[str]:
    """Return the names of the sets that evaluation rows speak of."""
    return {row[side] for row in rows for side in ("id", "ood")}


def hint_to_choose(rows: "Sequence[Row]", run: "RunStore") -> None:
    """Say so where GradNorm ranks below the maximum softmax probability."""
    from gradscore.choosing import read_choice
    from gradscore.errors import RunError

    means = {}
    for row in rows:
        compared = row["ood"] == "mean" and row["method"] in ("gradnorm", "msp")
        if compared and row.spec == type(row.spec)(row["method"]):
            means.setdefault(row["method"], []).append(row["auroc"])
    if not {"gradnorm", "msp"} <= means.keys():
        return
    gradnorm, msp = (100 * sum(means[name]) / len(means[name]) for name in ("gradnorm", "msp"))
    if gradnorm < msp:
        command = shlex.join(("gradscore", "choose", "--run", str(run.path)))
        chosen = None
        with suppress(RunError):  # a damaged choice is the business of `choose`
            chosen = read_choice(run)
        told = f"`{command}` says which score to trust for this model."
        if chosen is not None:
            told = f"For this model `gradscore choose` took {chosen[0].title()}."
        say(f"gradnorm ranks below msp here (mean AUROC {gradnorm:.1f} against {msp:.1f}). {told}")
