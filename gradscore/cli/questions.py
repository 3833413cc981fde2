"""From the options of the commands to questions that a run can answer."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from gradscore.cli.console import notice


def ask(
    run: Any, methods: Sequence[str], options: dict[str, Any], *, quiet: bool = False
) -> list[Any]:
    """Return the questions of ``methods``, each with the options that it honours.

    Without ``methods`` every method is asked that needs no further option and that the run can
    answer; those left out are named in a notice.
    """
    from gradscore.errors import ModelError, NotRecorded
    from gradscore.scores import METHODS, find_method, make_questions

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
