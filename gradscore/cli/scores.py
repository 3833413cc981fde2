"""``gradscore score``, ``evaluate``, ``ablate`` and ``compare``: from recorded runs to figures."""

import click

from gradscore.choices import ABLATIONS, ROW_ENDINGS, SCORE_ENDINGS
from gradscore.cli.console import notice, print_table, say, say_left_out
from gradscore.cli.detectors import class_text
from gradscore.cli.evaluations import show_evaluation, show_rows
from gradscore.cli.judged import judge
from gradscore.cli.options import (
    backend_option,
    chained,
    import_methods,
    metric_option,
    named_model_option,
    output_option,
    plot_option,
    quiet_option,
    run_place,
)
from gradscore.cli.results import (
    choose_specs,
    evaluated_sets,
    hint_to_choose,
    notice_chance,
    notice_fits,
    notice_intervals,
    notice_outputs,
    notice_written,
)
from gradscore.cli.score_options import score_options

SHOWN = 5
"""Images of a set in the summary of its scores."""
of_a_run = chained(run_place, named_model_option, score_options, backend_option)


@click.command(short_help="Score every image of a run.")
@chained(of_a_run, output_option(SCORE_ENDINGS), plot_option, quiet_option)
@click.option(
    "--detector",
    metavar="FILE",
    help="Take the score of this detector, as it learned it; --plot then draws its threshold.",
)
def score(run_path, model, sets, methods, backend, output, plot, quiet, **options) -> None:
    """Score every image of a run; higher means more in-distribution.

    Without -o a summary of each set and its first images are shown. --plot draws how the scores
    of each set are distributed. Its line is the detector's threshold, where --detector is given.
    Otherwise it is the largest that keeps 95% of the ID images drawn.
    """
    from gradscore.methods import make_specs
    from gradscore.run import RunStore
    from gradscore.run.names import SURROGATE
    from gradscore.scoring import iterate_scores, score_sets
    from gradscore.tables import write_scores

    run = stored = RunStore(run_path, model)
    sets = sets or tuple(name for name, entry in run.sets.items() if entry.role != SURROGATE)
    detector, line = options.pop("detector"), {}
    if detector:
        judged = judge(stored, detector, methods, options, quiet=quiet)
        run, specs, line = judged.run, [judged.spec], judged.line()
    else:
        import_methods(methods)
        specs = make_specs(methods or ("gradnorm",), **options)
    if plot:
        from gradscore.plots import plot_scores

        scored = score_sets(run, sets, specs, backend)
        blocks = scored.values()
        plot_scores(run, scored, specs, plot, **line)
        notice_written(plot, quiet=quiet)
    else:
        blocks = iterate_scores(run, sets, specs, backend)
    if output:
        count = write_scores(output, blocks, run.info.class_names)
        notice(f"Wrote the scores of {count:,} images to {output}.", quiet=quiet)
    elif not plot:
        _summarize(blocks, run.info.class_names)
    _notice_doubts(stored, [] if detector else specs, sets, quiet)


@click.command(short_help="Print how well each score tells ID from OOD.")
@chained(of_a_run, output_option(ROW_ENDINGS), plot_option, quiet_option)
@click.option("--full", is_flag=True, help="Show every OOD set, not only their mean.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(("openood",)),
    help="Write the .csv of -o in the columns of OpenOOD's leaderboard.",
)
@click.option(
    "--near",
    metavar="SET",
    multiple=True,
    help="OOD set that OpenOOD's columns count as near; the others are far. May be repeated.",
)
@metric_option
def evaluate(
    run_path, model, sets, methods, backend, full, metrics, output, plot, quiet, **options
) -> None:
    """Print ID accuracy, then AUROC, FPR95, AUPR-in and AUPR-out of each method in percent.

    One line a method, the mean over the OOD sets, best AUROC first; --full shows every set.
    Intervals are 95% bootstrap percentiles; of sets of more than 200,000 rows, DeLong's for AUROC
    and normal ones for the others. Files hold every set: .csv, .parquet and .json
    fractions, .md and .tex methods x sets in percent. --plot draws the ROC curves.
    """
    from gradscore.evaluation import evaluate_run
    from gradscore.interop.openood import write_leaderboard
    from gradscore.run import RunStore
    from gradscore.tables import write_evaluation

    layout, near = options.pop("layout"), options.pop("near")
    if layout and not (output and output.lower().endswith(".csv")):
        raise click.UsageError("Expected -o FILE.csv with --format openood.")
    if near and not layout:
        raise click.UsageError("Expected --near with --format openood only.")
    run = RunStore(run_path, model)
    specs = choose_specs(run, methods, options, quiet=quiet)
    evaluation = evaluate_run(run, specs, sets=sets or None, backend=backend)
    _notice_doubts(run, specs, evaluated_sets(evaluation.rows), quiet)
    if output:  # before it is printed: a pager that is closed must not take the file along
        if layout:
            write_leaderboard(output, evaluation, near=near, model=run.info.model)
        else:
            write_evaluation(output, evaluation, metrics)
        notice_written(output, quiet=quiet)
    if plot:
        from gradscore.plots import plot_roc

        plot_roc(run, specs, plot, sets=sets or None)
        notice_written(plot, quiet=quiet)
    show_evaluation(evaluation, full=full, metrics=metrics)
    notice_intervals(evaluation.rows, quiet=quiet)
    hint_to_choose(evaluation.rows, run)


@click.command(short_help="Sweep one setting of GradNorm, as the paper does.")
@click.argument("kind", type=click.Choice(ABLATIONS))
@chained(run_place, named_model_option, output_option(ROW_ENDINGS), plot_option, quiet_option)
@click.option(
    "--set", "sets", metavar="NAME", multiple=True, help="Only these sets. May be repeated."
)
@metric_option
def ablate(kind, run_path, model, sets, metrics, output, plot, quiet) -> None:
    """Sweep one setting of GradNorm over a run, as the paper does.

    layers: Table 2. p: Figure 4. temperature: Figure 5. target: Figure 3. decomposition into U
    and V: Table 5. kl against GradNorm: Figure 6.
    """
    from gradscore.ablation import ablate as sweep
    from gradscore.run import RunStore
    from gradscore.tables import write_evaluation

    run = RunStore(run_path, model)
    evaluation = sweep(run, kind, sets=sets or None)[kind]
    if output:
        write_evaluation(output, evaluation, metrics)
        notice_written(output, quiet=quiet)
    if plot:
        from gradscore.plots import plot_ablation

        notice_written(*plot_ablation(kind, run, evaluation, plot), quiet=quiet)
    show_evaluation(evaluation, metrics=metrics)
    notice_intervals(evaluation.rows, quiet=quiet)


@click.command(short_help="Evaluate several runs side by side.")
@click.argument("runs", metavar="RUN RUN...", nargs=-1)
@click.option(
    "--run", "named", metavar="DIR", multiple=True, help="A run, as RUN. May be repeated."
)
@click.option(
    "--model",
    "models",
    metavar="SPEC",
    multiple=True,
    help="A run's model again, where it is your own code (python:) and must be asked anew. May be "
    "repeated.",
)
@chained(score_options, output_option(ROW_ENDINGS), plot_option, quiet_option, metric_option)
def compare(runs, named, models, sets, methods, metrics, output, plot, quiet, **options) -> None:
    """Evaluate several runs side by side, such as one a model (Table 4).

    Each line says the run's ID accuracy, too.
    """
    from gradscore.ablation import compare as side_by_side
    from gradscore.run import RunStore
    from gradscore.tables import write_rows

    runs = (*runs, *named)
    if not runs:
        raise click.UsageError("Expected the directories of the runs to compare: RUN RUN...")
    stores = [RunStore(path) for path in runs]
    for store in stores:
        store.model = store.info.model if store.info.model in models else None
    specs = choose_specs(stores[0], methods, options, quiet=quiet)
    rows = side_by_side(stores, specs, sets=sets or None)
    seen = evaluated_sets(rows)
    notice_fits(stores[0], specs, seen, quiet=quiet)
    for store in stores:
        notice_outputs(store, seen, quiet=quiet)
    if output:
        write_rows(output, rows, metrics)
        notice_written(output, quiet=quiet)
    if plot:
        from gradscore.plots import plot_comparison

        plot_comparison(rows, plot)
        notice_written(plot, quiet=quiet)
    show_rows(rows, metrics=metrics)
    notice_intervals(rows, quiet=quiet)


def _notice_doubts(run, specs, sets, quiet: bool) -> None:
    """Name whatever makes the figures of some sets doubtful."""
    notice_fits(run, specs, sets, quiet=quiet)
    notice_outputs(run, sets, quiet=quiet)
    notice_chance(run, sets, quiet=quiet)


def _summarize(blocks, class_names) -> None:
    """Print each set's median and quartiles, then its first images."""
    import numpy as np

    first, columns = {}, {}
    for block in blocks:
        first.setdefault(block.set, block)
        for name, values in block.columns.items():
            columns.setdefault((block.set, name), []).append(values)
    rows = []
    for (set_name, method), parts in columns.items():
        values = np.concatenate(parts)
        quartiles = np.quantile(values, [0.25, 0.5, 0.75])
        rows.append((set_name, method, f"{len(values):,}", *(f"{q:.6g}" for q in quartiles)))
    columns = ("set", "score", "images", "25%", "median", "75%")
    dropped = print_table(columns, rows, left=2, droppable=(5, 3))
    names = list(next(iter(first.values())).columns) if first else []
    rows = [
        (
            set_name,
            block.path[k],
            str(block.label[k]),
            class_text(class_names, int(block.predicted[k])),
            *(f"{block.columns[name][k]:.6g}" for name in names),
        )
        for set_name, block in first.items()
        for k in range(min(SHOWN, len(block)))
    ]
    columns = ("set", "path", "label", "predicted", *names)
    dropped += print_table(
        columns, rows, left=2, droppable=(2, *range(len(columns) - 1, 4, -1), 3)
    )
    say_left_out(dropped)
    say("Higher = in-distribution. Write every image with -o FILE.csv or .parquet.")
