"""Evaluations in a terminal: a line a score, or methods x sets; percent with one decimal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradscore.cli.console import print_table, say, say_left_out, wide

if TYPE_CHECKING:
    from gradscore.evaluation import Evaluation, Row
    from gradscore.pivot import Pivot

WIDTH_WITH_INTERVALS = 112


def show_evaluation(
    evaluation: "Evaluation", *, full: bool = True, metrics: Sequence[str] | None = None
) -> None:
    """Print an evaluation: the ID accuracy first, then every method and OOD set.

    In short, the mean over the OOD sets of every method, best first.

    Args:
        evaluation: What to print.
        full: Whether every OOD set is shown.
        metrics: Figures to show; by default all in short, and AUROC and FPR95 in full.
    """
    for name, accuracy in evaluation.accuracies.items():
        say(accuracy_text(accuracy, name if len(evaluation.accuracies) > 1 else ""))
    if full:
        show_rows(evaluation.rows, metrics=metrics)
    else:
        _show_means(evaluation.rows, metrics)


def accuracy_text(accuracy: Any, name: str) -> str:
    """Return an ID set's accuracy, and which images it is of."""
    return f"ID accuracy{f' on {name}' if name else ''}: {accuracy}"


def show_rows(rows: "Sequence[Row]", *, metrics: Sequence[str] | None = None) -> None:
    """Print evaluation rows as a table of methods x sets.

    A narrow terminal leaves out FPR95 first, then whole sets, from the last; the mean stays.
    """
    from gradscore.pivot import METRIC_NAMES, percent, pivot

    table = pivot(rows, metrics)
    columns = [(ood, METRIC_NAMES[metric]) for ood, metric in table.columns]
    cells = [
        line.lead
        + tuple(
            percent(line.rows[ood][metric]) if ood in line.rows else ""
            for ood, metric in table.columns
        )
        for line in table.lines
    ]
    left = len(table.lead)
    dropped = print_table(
        (*table.lead, *columns), cells, left=left, droppable=_least_needed(table, left)
    )
    say_left_out(dropped)


def _least_needed(table: "Pivot", left: int) -> list[int]:
    """Return the columns of figures in the order in which a narrow terminal drops them."""
    first, *others = table.metrics
    kept = table.sets[-1]
    order = [(ood, m) for m in reversed(others) for ood in reversed(table.sets) if ood != kept]
    order += [(ood, first) for ood in reversed(table.sets) if ood != kept]
    order += [(kept, metric) for metric in reversed(others)]
    return [left + table.columns.index(column) for column in order]


def _show_means(rows: "Sequence[Row]", metrics: Sequence[str] | None) -> None:
    """Print the mean over the OOD sets of every score, best first."""
    from gradscore.choices import METRICS
    from gradscore.pivot import METRIC_NAMES, percent, pivot, with_interval

    table = pivot(rows, metrics or METRICS)
    oods = [name for name in table.sets if name != "mean"]
    shown = table.sets[-1]
    lines = sorted(table.lines, key=lambda line: -line.rows[shown]["auroc"])
    intervals = rows[0]["auroc_low"] is not None
    fits = intervals and wide(WIDTH_WITH_INTERVALS)

    def figure(row: Mapping[str, Any], metric: str) -> str:
        return with_interval(row, metric) if fits else percent(row[metric])

    left = len(table.lead)
    dropped = print_table(
        (*table.lead, *(METRIC_NAMES[metric] for metric in table.metrics)),
        [line.lead + tuple(figure(line.rows[shown], m) for m in table.metrics) for line in lines],
        left=left,
        title=(f"OOD: mean of {', '.join(oods)}" if len(oods) > 1 else f"OOD: {shown}")
        + ("; percent [95% interval]" if fits else "; percent"),
        droppable=range(left + len(table.metrics) - 1, left, -1),
    )
    say_left_out(["the 95% intervals"] * (intervals and not fits) + dropped)
