"""``gradscore verify``: hold the rules and the closed form to autograd, on any model."""

import warnings

import click

from gradscore.cli.console import notice, print_table, say
from gradscore.cli.models import load, noise
from gradscore.cli.options import (
    ORDER,
    TARGET,
    TEMPERATURE,
    Positive,
    chained,
    model_options,
    output_option,
    preprocessing_options,
    quiet_option,
)
from gradscore.errors import GradScoreError, GradScoreWarning


@click.command(short_help="Compare the gradient norms with plain autograd.")
@chained(model_options, preprocessing_options)
@click.option("--data", metavar="PATH", help="Images to verify on. Default: noise.")
@click.option("--layers", metavar="L", default="all", show_default=True, help="Parameters.")
@click.option(
    "-p",
    "p",
    metavar="P",
    type=ORDER,
    multiple=True,
    default=(1.0,),
    help="Order of the norm. May be repeated.",
)
@click.option("-T", "--temperature", metavar="T", type=TEMPERATURE, default=1.0)
@click.option("--target", type=TARGET, default="uniform")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=4, show_default=True)
@click.option("--tolerance", metavar="X", type=Positive("X"), default=1e-8, show_default=True)
@chained(output_option(".csv, .md, .json, .parquet"), quiet_option)
def verify(
    model,
    weights,
    data,
    layers,
    p,
    temperature,
    target,
    limit,
    tolerance,
    output,
    quiet,
    **how,
):
    """Compare gradient norms with one-backward-a-sample autograd, in float64.

    Prints the rule that served each parameter and its largest relative error over the images;
    exits with 1 where one is above the tolerance.
    """
    import torch

    from gradscore.data import open_set
    from gradscore.norms import number_name
    from gradscore.tables import ROW_ENDINGS, check_output, write_rows
    from gradscore.verification import verify as hold

    if output:
        check_output(output, ROW_ENDINGS)
    network = load(model, weights, how, quiet=quiet)
    if data:
        images = open_set(data, limit=limit)
        batch = torch.stack([network.preprocessing(images[k]) for k in range(len(images))])
    else:
        batch = noise(network, limit)
    asked = {"layers": layers, "temperature": temperature, "target": target}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", GradScoreWarning)
        found = {order: hold(network, batch, p=order, **asked) for order in p}
    for told in dict.fromkeys(str(entry.message) for entry in caught):
        notice(told, quiet=quiet)
    rows = [
        {"p": order, "parameter": name, "rule": entry.rules[name], "error": error}
        for order, entry in found.items()
        for name, error in entry.errors.items()
    ]
    if caution := next(iter(found.values())).caution:
        notice(f"Note: {caution} (--limit).", quiet=quiet)
    if output:
        write_rows(output, rows)
        notice(f"Wrote {output}.", quiet=quiet)
    print_table(
        ("p", "parameter", "rule", "relative error"),
        [(number_name(r["p"]), r["parameter"], r["rule"], f"{r['error']:.1e}") for r in rows],
        left=3,
    )
    for order, entry in found.items():
        closed = entry.closed_form_error
        told = entry.closed_form_reason if closed is None else f"{closed:.1e}"
        say(
            f"p = {number_name(order)}: largest relative error {entry.max_relative_error:.1e} "
            f"({entry.worst}); whole norm {entry.total_error:.1e}; closed form: {told}"
        )
    if max(entry.max_relative_error for entry in found.values()) > tolerance:
        raise GradScoreError(f"Some error is above the tolerance of {tolerance:g}.")
