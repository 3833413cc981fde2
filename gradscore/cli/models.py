"""``gradscore layers`` and ``gradscore verify``: a model's parameters, and its norms checked.

What the commands that take a model share: building it, and images to try it on.
"""

import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import click

from gradscore.choices import ROW_ENDINGS
from gradscore.cli.console import notice, print_table, say
from gradscore.cli.options import (
    ORDER,
    TARGET,
    TEMPERATURE,
    Pair,
    Positive,
    chained,
    model_options,
    output_option,
    preprocessing_options,
    quiet_option,
)
from gradscore.cli.results import notice_written
from gradscore.errors import GradScoreError, GradScoreWarning


@click.command(short_help="Show a model's parameter groups and rules.")
@chained(model_options, preprocessing_options)
@click.option(
    "--blocks",
    metavar="NAME=PATTERN",
    type=Pair("PATTERN"),
    multiple=True,
    help="Name a group. May be repeated.",
)
@click.option("--all", "every", is_flag=True, help="One row a parameter tensor.")
@chained(output_option(ROW_ENDINGS), quiet_option)
def layers(model, weights, blocks, every, output, quiet, **overrides) -> None:
    """Show a model's parameter groups, their sizes, and the rule that serves each."""
    from gradscore.engine import gradient_norms
    from gradscore.layers.groups import parameter_groups
    from gradscore.layers.head import find_head
    from gradscore.tables import write_rows

    network = load(model, weights, overrides, quiet=quiet)
    images = noise(network, 2)
    head = find_head(network, images)
    groups = parameter_groups(network, head, dict(blocks))
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    rules = gradient_norms(network, images).rules
    if every:
        group_of = {p: g for g, names in groups.items() if g != "all" for p in names}
        rows = [
            {"parameter": n, "group": group_of.get(n, ""), "rule": rules[n], "elements": size}
            for n, size in sizes.items()
        ]
    else:
        rows = [
            {
                "group": group,
                "rules": _numbered(rules[name] for name in names),
                "tensors": len(names),
                "elements": sum(sizes[name] for name in names),
            }
            for group, names in groups.items()
        ]
    cells = [[f"{v:,}" if isinstance(v, int) else v for v in row.values()] for row in rows]
    if output:
        write_rows(output, rows)
        notice_written(output, quiet=quiet)
    print_table(tuple(rows[0]), cells, left=3 if every else 2)
    if not head.closed_form:
        say(f"No closed form for `last`: {head.reason}")


def _numbered(rules: Iterable[str]) -> str:
    """Return each rule with the number of tensors that it serves."""
    return ", ".join(f"{rule} {count}" for rule, count in Counter(rules).most_common())


@click.command(short_help="Compare the gradient norms with plain autograd.")
@chained(model_options, preprocessing_options)
@click.option("--data", metavar="PATH", help="Images to verify with. Default: noise.")
@click.option(
    "--layers", metavar="L", default="all", show_default=True, help="Parameters to verify."
)
@click.option(
    "-p",
    "p",
    metavar="P",
    type=ORDER,
    multiple=True,
    default=(1.0,),
    help="Order of the norm. May be repeated.",
)
@click.option(
    "-T",
    "--temperature",
    metavar="T",
    type=TEMPERATURE,
    default=1.0,
    show_default=True,
    help="Softmax temperature.",
)
@click.option(
    "--target",
    type=TARGET,
    default="uniform",
    show_default=True,
    help="What the loss compares the softmax with.",
)
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Number of images.",
)
@click.option(
    "--tolerance",
    metavar="X",
    type=Positive("X"),
    default=1e-8,
    show_default=True,
    help="Largest relative error that passes.",
)
@chained(output_option(ROW_ENDINGS), quiet_option)
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
    """Compare the gradient norms with plain autograd, one backward a sample, in float64.

    Prints the rule that served each parameter and its largest relative error over the images;
    exits with 1 where one is above the tolerance.
    """
    import torch

    from gradscore.data import open_set
    from gradscore.norms import number_name
    from gradscore.tables import write_rows
    from gradscore.verification import verify as compare

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
        found = {order: compare(network, batch, p=order, **asked) for order in p}
    for message in dict.fromkeys(str(entry.message) for entry in caught):
        notice(message, quiet=quiet)
    rows = [
        {"p": order, "parameter": name, "rule": entry.rules[name], "error": error}
        for order, entry in found.items()
        for name, error in entry.errors.items()
    ]
    if caution := next(iter(found.values())).caution:
        notice(f"Note: {caution} (--limit).", quiet=quiet)
    if output:
        write_rows(output, rows)
        notice_written(output, quiet=quiet)
    print_table(
        ("p", "parameter", "rule", "relative error"),
        [(number_name(r["p"]), r["parameter"], r["rule"], f"{r['error']:.1e}") for r in rows],
        left=3,
    )
    for order, entry in found.items():
        closed = entry.closed_form_error
        error = entry.closed_form_reason if closed is None else f"{closed:.1e}"
        say(
            f"p = {number_name(order)}: largest relative error {entry.max_relative_error:.1e} "
            f"({entry.worst}); whole norm {entry.total_error:.1e}; closed form: {error}"
        )
    if max(entry.max_relative_error for entry in found.values()) > tolerance:
        raise GradScoreError(f"Some error is above the tolerance of {tolerance:g}.")


def load(spec: str | None, weights: str | None, overrides: dict[str, Any], *, quiet: bool) -> Any:
    """Return the model of ``spec`` (the embedded one by default) with overridden preprocessing.

    What its user should know of how it was made is printed.
    """
    from gradscore.models import create_model

    model = create_model(spec or "digits", weights)
    model.preprocessing = model.preprocessing.with_overrides(**overrides)
    for line in model.notices:
        notice(line, quiet=quiet)
    return model


def noise(model: Any, count: int) -> Any:
    """Return ``count`` images of uniform noise as the model takes them, from a fixed seed."""
    import numpy as np
    import torch

    prepare = model.preprocessing
    channels, *size = prepare.input_shape()
    rng = np.random.default_rng(0)
    pictures = (rng.integers(0, 256, (*size, channels), dtype=np.uint8) for _ in range(count))
    return torch.stack([prepare(picture) for picture in pictures])
