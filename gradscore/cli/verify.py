"""``gradscore verify``: hold the rules and the closed form to autograd, on any model."""

import click

from gradscore.cli.models import load, noise
from gradscore.cli.options import (
    ORDER,
    TARGET,
    TEMPERATURE,
    chained,
    model_options,
    output_option,
    preprocessing_options,
    quiet_option,
)


@click.command(short_help="Hold the gradient norms to autograd.")
@chained(model_options, preprocessing_options)
@click.option("--data", metavar="PATH", help="Images to verify on. Default: noise.")
@click.option("--layers", metavar="L", default="all", show_default=True, help="Parameters.")
@click.option(
    "-p", "p", metavar="P", type=ORDER, multiple=True, default=(1.0,), help="Repeatable."
)
@click.option("-T", "--temperature", metavar="T", type=TEMPERATURE, default=1.0)
@click.option("--target", type=TARGET, default="uniform")
@click.option("--limit", metavar="N", type=click.IntRange(1), default=4, show_default=True)
@chained(output_option(".csv, .md, .json, .parquet"), quiet_option)
def verify(
    model, weights, data, layers, p, temperature, target, limit, output, quiet, **overrides
):
    """Compare gradient norms with one-backward-a-sample autograd, in float64.

    Prints the rule that served each parameter and its largest relative error; exits with 1 where
    one is above tolerance.
    """
    import torch

    from gradscore.data import open_set
    from gradscore.tables import ROW_ENDINGS, check_ending

    if output:
        check_ending(output, ROW_ENDINGS)
    network = load(model, weights, overrides)
    if data:
        images = open_set(data, limit=limit)
        batch = torch.stack([network.preprocessing(images[k]) for k in range(len(images))])
    else:
        batch = noise(network, limit)
