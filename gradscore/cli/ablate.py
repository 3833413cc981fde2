"""``gradscore ablate`` and ``gradscore compare``: the paper's sweeps, and several runs."""

import click

from gradscore.choices import ABLATIONS
from gradscore.cli.console import notice
from gradscore.cli.evaluate import evaluated_sets, show_evaluation, show_rows
from gradscore.cli.options import (
    chained,
    named_model_option,
    output_option,
    quiet_option,
    run_option,
    score_options,
)
from gradscore.cli.specs import choose_specs, notice_fits, notice_outputs

plot_option = click.option("--plot", metavar="F.png", help="Draw the figure (.png, .pdf, .svg).")
written = output_option(".csv, .md, .json, .parquet")


@click.command(short_help="Sweep one setting of GradNorm, as the paper does.")
@click.argument("kind", type=click.Choice(ABLATIONS))
@chained(run_option, named_model_option, written, plot_option, quiet_option)
@click.option("--set", "sets", metavar="NAME", multiple=True, help="Only these sets.")
def ablate(kind, run_path, model, sets, output, plot, quiet) -> None:
    """Sweep one setting of GradNorm over a run, as the paper does.

    layers: Table 2. p: Figure 4. temperature: Figure 5. target: Figure 3. decomposition into U
    and V: Table 5. kl against GradNorm: Figure 6.
    """
    from gradscore.ablation import ablate as sweep
    from gradscore.run import RunStore
    from gradscore.tables import ROW_ENDINGS, check_output, write_evaluation

    run = RunStore(run_path, model)
    if output:
        check_output(output, ROW_ENDINGS)
    if plot:
        from gradscore.plots import check_figure, plot_ablation

        check_figure(plot)
    evaluation = sweep(run, kind, sets=sets or None)[kind]
    if output:
        write_evaluation(output, evaluation)
        notice(f"Wrote {output}.", quiet=quiet)
    if plot:
        drawn = plot_ablation(kind, run, evaluation, plot)
        notice(f"Wrote {', '.join(map(str, drawn))}.", quiet=quiet)
    show_evaluation(evaluation)


@click.command(short_help="Evaluate several runs side by side.")
@click.argument("runs", metavar="RUN RUN...", nargs=-1)
@click.option("--run", "named", metavar="DIR", multiple=True, help="A run, as RUN.")
@click.option(
    "--model",
    "models",
    metavar="SPEC",
    multiple=True,
    help="As for score; repeatable.",
)
@chained(score_options, written, plot_option, quiet_option)
def compare(runs, named, models, sets, methods, output, plot, quiet, **options) -> None:
    """Evaluate several runs side by side, such as one a model (Table 4)."""
    from gradscore.ablation import compare as side_by_side
    from gradscore.run import RunStore
    from gradscore.tables import ROW_ENDINGS, check_output, write_rows

    runs = (*runs, *named)
    if not runs:
        raise click.UsageError("Expected the directories of the runs to compare: RUN RUN...")
    if output:
        check_output(output, ROW_ENDINGS)
    if plot:
        from gradscore.plots import check_figure, plot_comparison

        check_figure(plot)
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
        write_rows(output, rows)
        notice(f"Wrote {output}.", quiet=quiet)
    if plot:
        plot_comparison(rows, plot)
        notice(f"Wrote {plot}.", quiet=quiet)
    show_rows(rows, lead=("run", "model"))
