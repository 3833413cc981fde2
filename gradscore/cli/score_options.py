"""Options that say which scores a run is asked for, and their settings."""

from collections.abc import Callable
from typing import Any

import click

from gradscore.choices import METHODS
from gradscore.cli.options import ORDER, TARGET, TEMPERATURE, chained, repeatable

named_score_options = chained(
    click.option(
        "--set", "sets", metavar="NAME", multiple=True, help="Only these sets. May be repeated."
    ),
    click.option(
        "--method",
        "methods",
        metavar="M",
        multiple=True,
        help="gradnorm; its factors u (norm of the features) and v (distance of the softmax from "
        f"uniform); {', '.join(METHODS[3:-1])}, or lee_alregib (a classifier of squared gradient "
        "norms); or python:MODULE:FUNCTION, a score of your own. May be repeated.",
    ),
)


def single(*names: str, help: str, **how: Any) -> Callable:
    """Return an option that is given once, or None."""
    return click.option(*names, help=help, **how)


def _settings(option: Callable) -> Callable:
    return chained(
        option(
            "--layers",
            metavar="L",
            help="Parameters whose gradient is scored: last (default), block1, ..., all, or a "
            "glob.",
        ),
        option(
            "-p",
            "p",
            metavar="P",
            type=ORDER,
            help="Order of the norm, default 1; inf is allowed.",
        ),
        option("-T", "--temperature", metavar="T", type=TEMPERATURE, help="Softmax temperature."),
        option(
            "--target",
            type=TARGET,
            help="What the loss compares the softmax with. uniform (default): the paper's. "
            "one-hot: the predicted class; the score is then minus the norm.",
        ),
        option(
            "--epsilon",
            metavar="E",
            type=click.FloatRange(min=0),
            help="Input perturbation of odin, 0 by default.",
        ),
        option("--fit", metavar="SET", help="ID set that fitted methods learn from."),
        option("--k", metavar="K", type=click.IntRange(1), help="Neighbours of knn and nnguide."),
        option(
            "--dimension",
            metavar="D",
            type=click.IntRange(0),
            help="Dimension of the principal subspace of vim.",
        ),
        option(
            "--percentile",
            metavar="Q",
            type=click.FloatRange(0, 100),
            help="Percentile at which react clips, ash prunes and scale divides.",
        ),
        click.option(
            "--two-sided",
            is_flag=True,
            callback=lambda ctx, param, value: value or None,
            help="laplace_energy_blocks: an image that lies nearer than ID images usually do "
            "scores even higher.",
        ),
        option(
            "--clip",
            metavar="Q",
            type=click.FloatRange(0, 100),
            help="laplace_energy: clip features at this percentile first, as react does.",
        ),
    )


setting_options = _settings(repeatable)
"""Settings of scores; every combination of repeated ones is answered on its own."""
one_score_options = _settings(single)
"""The settings of one score."""
score_options = chained(named_score_options, setting_options)
"""What a run is asked."""
