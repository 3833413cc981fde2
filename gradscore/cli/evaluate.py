"""``gradscore evaluate``: how well each score tells the run's ID set from its OOD sets."""

import click

from gradscore.cli.console import notice, print_table, say, wide
from gradscore.cli.options import (
    backend_option,
    chained,
    named_model_option,
    output_option,
    quiet_option,
    run_option,
    score_options,
)
from gradscore.cli.specs import choose_specs, notice_chance, notice_fits, notice_outputs

WIDTH_WITH_INTERVALS = 132
FIGURES = {"AUROC": "auroc", "FPR95": "fpr95", "AUPR-in": "aupr_in", "AUPR-out": "aupr_out"}


@click.command(short_help="Print how well each score tells ID from OOD.")
@chained(
    run_option,
    named_model_option,
    score_options,
    backend_option,
    output_option(".csv, .md, .json, .parquet"),
    quiet_option,
)
def evaluate(run_path, model, sets, methods, backend, output, quiet, **options) -> None:
    """Print ID accuracy, then AUROC, FPR95, AUPR-in and AUPR-out of each method in percent.

    Intervals are 95% bootstrap percentiles. Files hold fractions.
    """
    from gradscore.evaluation import evaluate_run
    from gradscore.run import RunStore
    from gradscore.tables import ROW_ENDINGS, check_output, write_evaluation

    run = RunStore(run_path, model)
    if output:
        check_output(output, ROW_ENDINGS)
    specs = choose_specs(run, methods, options, quiet=quiet)
    evaluation = evaluate_run(run, specs, sets=sets or None, backend=backend)
    seen = evaluated_sets(evaluation.rows)
    notice_fits(run, specs, seen, quiet=quiet)
    notice_outputs(run, seen, quiet=quiet)
    notice_chance(run, seen, quiet=quiet)
    if output:  # before it is printed: a pager that is closed must not take the file along
        write_evaluation(output, evaluation)
        notice(f"Wrote {output}.", quiet=quiet)
    show_evaluation(evaluation)


def evaluated_sets(rows) -> set[str]:
    """Return the names of the sets that evaluation rows speak of."""
    return {row[side] for row in rows for side in ("id", "ood")}


def show_evaluation(evaluation, *, title: str = "") -> None:
    """Print an evaluation: the ID accuracy first, then a row a method and OOD set."""
    for name, accuracy in evaluation.accuracies.items():
        say(accuracy_text(accuracy, name if len(evaluation.accuracies) > 1 else ""))
    show_rows(evaluation.rows, title=title)


def accuracy_text(accuracy, name: str) -> str:
    """Return an ID set's accuracy, and how many images it is of where some have no label."""
    what = f"ID accuracy of {name}" if name else "ID accuracy"
    if not accuracy.labelled:
        return f"{what} unknown: no image has a label"
    of = f" of the {accuracy.labelled:,} images with a label, {accuracy.images:,} in all"
    return f"{what} {accuracy.share:.1%}{of if accuracy.labelled < accuracy.images else ''}"


def show_rows(rows, *, lead: tuple[str, ...] = (), title: str = "") -> None:
    """Print evaluation rows; settings are shown where they differ between rows.

    Where there is but one OOD set, its row is the mean.
    """
    from gradscore.norms import number_name

    if len({row["ood"] for row in rows}) == 2:
        rows = [row for row in rows if row["ood"] != "mean"]

    def text(value) -> str:
        return number_name(value) if isinstance(value, float) else str(value or "")

    settings = [
        name
        for name in ("layers", "p", "temperature", "target", "fit", "epsilon", "id")
        if len({row.get(name) for row in rows if row.get(name) is not None}) > 1
    ]
    intervals = wide(WIDTH_WITH_INTERVALS) and any(row["auroc_low"] is not None for row in rows)

    def figure(row, name: str) -> str:
        value = f"{100 * row[name]:.2f}"
        if not intervals or row[f"{name}_low"] is None:
            return value
        return f"{value} [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"

    words = (*lead, "method", *settings, "ood")
    print_table(
        (*words, *FIGURES),
        [
            tuple(text(row.get(word)) for word in words)
            + tuple(figure(row, name) for name in FIGURES.values())
            for row in rows
        ],
        left=len(words),
        title=title,
    )
    if not intervals:
        say("Percent. A wider terminal, a pipe or -o FILE also shows the 95% intervals.")
