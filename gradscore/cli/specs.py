"""From the options of the commands to scores that a run can give, and what to say of them."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import closing, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from gradscore.cli.console import notice

if TYPE_CHECKING:
    from gradscore.methods import RecordedRun, ScoreSpec

ROWS = 256
"""How many rows of a set are looked at to tell what its logits are."""


def choose_specs(
    run: "RecordedRun", methods: Sequence[str], options: dict[str, Any], *, quiet: bool = False
) -> "list[ScoreSpec]":
    """Return a spec for each of ``methods``, with the options that it honours.

    Without ``methods`` every method is taken that needs no further option and that the run can
    score by; those left out are named in a notice.
    """
    from gradscore.errors import ModelError, NotRecorded
    from gradscore.methods import METHODS, make_specs

    if methods:
        return make_specs(methods, **options)
    given = {name for name, value in options.items() if value is not None}
    possible = [m.name for m in METHODS.values() if set(m.required) <= given]
    specs, left_out = [], defaultdict(dict)
    for spec in make_specs(possible, **options):
        try:
            spec.definition.plan(spec, run)
            specs.append(spec)
        except (ModelError, NotRecorded) as error:
            left_out[str(error).replace(spec.method, "METHOD")][spec.method] = str(error)
    for methods in left_out.values():
        *_, error = methods.values()
        notice(f"Left out {', '.join(methods)}. {error}", quiet=quiet)
    return specs


def notice_outputs(run: "RecordedRun", sets: Collection[str], *, quiet: bool = False) -> None:
    """Tell where what the run's model returned can hardly be logits."""
    from torch import as_tensor

    from gradscore.errors import RunError
    from gradscore.outputs import OutputWatch

    told, watch = run.info.notice, OutputWatch()
    for name in sorted(run.sets.keys() & sets):
        if told or watch.settled:
            break
        with (
            suppress(RunError),
            closing(run.blocks(name, fields=("logits",), rows=ROWS)) as blocks,
        ):
            for block in islice(blocks, 1):
                told = watch.fault(as_tensor(block["logits"]))
    if told:
        notice(f"{run.info.model}: {told}.", quiet=quiet)


def notice_chance(run: "RecordedRun", sets: Collection[str], *, quiet: bool = False) -> None:
    """Tell of ID sets whose accuracy is no better than guessing: something does not fit."""
    from gradscore.evaluation import chance_accuracies

    drawn = run.info.weights == "random"
    cause = (
        "the weights are random"
        if drawn
        else "the weights, the labels' numbering or the preprocessing do not belong to this model"
    )
    for name, figure in chance_accuracies(run, sets).items() if not quiet else ():
        notice(
            f"{name}: ID accuracy {figure.share:.1%} of {figure.labelled:,} images is chance for "
            f"{run.info.classes:,} classes: {cause}."
        )


def notice_fits(
    run: "RecordedRun", specs: "Sequence[ScoreSpec]", sets: Collection[str], *, quiet: bool = False
) -> None:
    """Tell what methods learned from, and which of ``sets`` one knows better than any others."""
    told = defaultdict(dict)
    for spec in specs:
        told[spec.definition.plan(spec, run).notice][spec.method] = None
    for how, methods in told.items():
        if how:
            notice(f"{', '.join(methods)}: {how}.", quiet=quiet)
    learners = defaultdict(dict)
    for spec in specs:
        for name in spec.fit_sets():
            learners[name][spec.method] = None
    for name, methods in learners.items():
        if name in sets:
            learned = " and ".join(methods)
            notice(f"Figures of {name} are optimistic: {learned} learned from it.", quiet=quiet)
