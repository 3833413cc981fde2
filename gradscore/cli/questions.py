"""From the options of the commands to questions that a run can answer."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import closing, suppress
from itertools import islice
from typing import Any

from gradscore.cli.console import notice

ROWS = 256
"""How many rows of a set are looked at to tell what its logits are."""


def ask(
    run: Any, methods: Sequence[str], options: dict[str, Any], *, quiet: bool = False
) -> list[Any]:
    """Return the questions of ``methods``, each with the options that it honours.

    Without ``methods`` every method is asked that needs no further option and that the run can
    answer; those left out are named in a notice.
    """
    from gradscore.errors import ModelError, NotRecorded
    from gradscore.methods import METHODS, find_method, make_questions

    if methods:
        return make_questions(methods, **options)
    given = {name for name, value in options.items() if value is not None}
    possible = [m.name for m in METHODS.values() if set(m.required) <= given]
    questions = []
    for question in make_questions(possible, **options):
        try:
            find_method(question.method).plan(question, run)
            questions.append(question)
        except (ModelError, NotRecorded) as error:
            notice(f"Left out {question.method}. {error}", quiet=quiet)
    return questions


def notice_outputs(run: Any, sets: Collection[str], *, quiet: bool = False) -> None:
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
                told = watch.told(as_tensor(block["logits"]))
    if told:
        notice(f"{run.info.model}: {told}.", quiet=quiet)


def notice_chance(run: Any, sets: Collection[str], *, quiet: bool = False) -> None:
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


def notice_fits(questions: Sequence[Any], sets: Collection[str], *, quiet: bool = False) -> None:
    """Tell which of ``sets`` a method has seen before: it knows those better than any others."""
    learners = defaultdict(dict)
    for question in questions:
        for name in question.learned_from():
            learners[name][question.method] = None
    for name, methods in learners.items():
        if name in sets:
            learned = " and ".join(methods)
            notice(f"Figures of {name} are optimistic: {learned} learned from it.", quiet=quiet)
