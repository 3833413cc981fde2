"""``gradscore choose``: which score to trust for a model, asked of its ID images alone."""

import shlex

import click

from gradscore.cli.console import notice, print_table, say, say_left_out
from gradscore.cli.options import (
    chained,
    id_sets_option,
    import_methods,
    named_model_option,
    output_option,
    own_method_option,
    quiet_option,
    run_place,
)
from gradscore.cli.results import notice_chance

MARKED = ("energy", "msp", "gradnorm")
"""Scores that are marked in the tables, to compare the others with."""
FLAGS = {"p": "-p", "temperature": "-T"}
OF_COLUMNS = {
    "far": "each kind of surrogate, changed copies of the ID images.",
    "near": "each group of classes that is taken out of the last layer: its images play OOD.",
}
"""What the columns of a table stand for."""


@click.command(short_help="Say which score to trust for this model.")
@chained(run_place, named_model_option, id_sets_option)
@click.option("--fit", metavar="SET", help="ID set that fitted methods learn from.")
@chained(own_method_option, output_option((".json",)), quiet_option)
def choose(run_path, model, sets, fit, methods, output, quiet) -> None:
    """Rank every score of a run by its own ID images, and recommend one.

    far: how well each score tells ID images from surrogates, changed copies of them (`extract
    --record surrogates`). near: from ID images of classes that are taken out of the last layer.
    No label is needed. An OOD set of the run is read for a column that checks the ranking, and
    changes no choice.
    """
    from gradscore.choosing import choose as choose_score
    from gradscore.choosing import ood_aurocs
    from gradscore.files import written_aside
    from gradscore.run import RunStore

    for name in methods:
        if not name.startswith("python:"):
            raise click.UsageError(
                f"Expected a score of your own as python:MODULE:FUNCTION, got {name}; those of "
                "gradscore are compared in any case."
            )
    import_methods(methods)
    run = RunStore(run_path, model)
    choice = choose_score(run, sets=sets, fit=fit)
    if output:
        with written_aside(output) as file:
            file.write(choice.to_json().encode())
        notice(f"Wrote {output}.", quiet=quiet)
    show_choice(choice, ood_aurocs(run, choice), run_path)
    notice_chance(run, choice.sets, quiet=quiet)


def show_choice(choice, checks, run_path) -> None:
    """Print both tables, and what they recommend."""
    for title, rows in (("far", choice.far), ("near", choice.near)):
        if rows:
            _show_table(title, rows, checks)
    say("value: the mean of log(AUROC / (1 - AUROC)) with its 95% interval; 0 is guessing.")
    say("*: best, or tied with it. <: energy, msp or gradnorm, to compare with.")
    if checks:
        say("OOD sets: mean AUROC on the run's own, as a check; the choice does not read them.")
    for note in choice.notes:
        notice(note)
    if choice.not_kept:
        notice(f"The run does not keep the choice: {choice.not_kept}")
    show_recommendation(choice, run_path)


def show_recommendation(choice, run_path) -> None:
    """Print the recommendation, the warning, and the commands that use it."""
    say(f"Recommended: {choice.spec.title()} ({_why(choice)}).")
    if choice.warning:
        say(f"Warning: {choice.warning}")
    # The run's own choice is chosen anew by half of the images; the others give the threshold.
    kept = not (choice.not_kept or choice.spec.method.startswith("python:"))
    calibrated = command("calibrate", run_path, *(() if kept else use_words(choice.spec)))
    say(f"A threshold for it: {calibrated}")
    say(f"A score for every image: {command('score', run_path, *use_words(choice.spec))}")


def command(name: str, run_path: object, *words: str) -> str:
    """Return a command about a run, ready to paste."""
    return shlex.join(("gradscore", name, "--run", str(run_path), *words))


def use_words(spec) -> list[str]:
    """Return the options that name a score."""
    words = ["--method", spec.method]
    for name, text in spec.changed().items():
        option = FLAGS.get(name, f"--{name.replace('_', '-')}")
        words += [option] if text == "yes" else [option, text]
    return words


def _why(choice) -> str:
    rows = choice.far if choice.by == "far" else choice.near
    tied = sum(row.ranked.tied for row in rows)
    of = "surrogates" if choice.by == "far" else "classes removed from the last layer"
    cheapest = f", the cheapest of {tied} that tie" if tied > 1 else ""
    return f"best against {of}{cheapest}"


def _figure(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # never -0.00


def _show_table(title: str, rows, checks) -> None:
    columns = ["score", "", "value", "AUROC", *rows[0].ranked.aurocs]
    columns += ["OOD sets"] if checks else []
    cells = []
    for row in rows:
        value, low, high = map(_figure, (row.ranked.value, row.ranked.low, row.ranked.high))
        mark = "*" if row.ranked.tied else "<" if row.spec.method in MARKED else ""
        figures = [row.ranked.auroc, *row.ranked.aurocs.values()]
        cell = [
            row.spec.title(),
            mark,
            f"{value} [{low}, {high}]",
            *(f"{100 * a:.1f}" for a in figures),
        ]
        cells.append(cell + ([f"{100 * checks[row.spec]:.1f}"] if row.spec in checks else []))
    shifts = len(rows[0].ranked.aurocs)
    dropped = print_table(
        columns, cells, left=2, title=title, droppable=[*range(3 + shifts, 3, -1), 2]
    )
    say_left_out(dropped)
    say(f"AUROC in percent: the mean, then for {OF_COLUMNS[title]}")
