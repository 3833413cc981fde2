"""``gradscore score``: one row an image."""

import click

from gradscore.cli.console import notice, print_table, say
from gradscore.cli.options import (
    backend_option,
    chained,
    named_model_option,
    output_option,
    quiet_option,
    run_option,
    score_options,
)
from gradscore.cli.specs import notice_chance, notice_fits, notice_outputs

SHOWN = 5


@click.command(short_help="Score every image of a run.")
@chained(
    run_option,
    named_model_option,
    score_options,
    backend_option,
    output_option(".csv, .parquet"),
    quiet_option,
)
def score(run_path, model, sets, methods, backend, output, quiet, **options) -> None:
    """Score every image of a run; higher means more in-distribution.

    Without -o a summary of each set and its first images are shown.
    """
    from gradscore.methods import make_specs
    from gradscore.run import RunStore
    from gradscore.scoring import iterate_scores
    from gradscore.tables import SCORE_ENDINGS, check_output, write_scores

    run = RunStore(run_path, model)
    if output:
        check_output(output, SCORE_ENDINGS)
    specs = make_specs(methods or ("gradnorm",), **options)
    sets = sets or tuple(run.sets)
    blocks = iterate_scores(run, sets, specs, backend)
    if output:
        count = write_scores(output, blocks)
        notice(f"Wrote the scores of {count:,} images to {output}.", quiet=quiet)
    else:
        _show(blocks)
    notice_fits(run, specs, sets, quiet=quiet)
    notice_outputs(run, sets, quiet=quiet)
    notice_chance(run, sets, quiet=quiet)


def _show(blocks) -> None:
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
    print_table(("set", "score", "images", "25%", "median", "75%"), rows, left=2)
    names = list(next(iter(first.values())).columns) if first else []
    rows = [
        (
            set_name,
            *(str(values[k]) for values in (block.path, block.label, block.predicted)),
            *(f"{block.columns[name][k]:.6g}" for name in names),
        )
        for set_name, block in first.items()
        for k in range(min(SHOWN, len(block)))
    ]
    print_table(("set", "path", "label", "predicted", *names), rows, left=2)
    say("Higher = in-distribution. Write every image with -o FILE.csv or .parquet.")
