"""``gradscore layers``: the parameter groups of a model, and the rule that serves each."""

from collections import Counter

import click

from gradscore.cli.console import print_table
from gradscore.cli.models import load, noise
from gradscore.cli.options import Pair, chained, model_options, preprocessing_options


@click.command(short_help="Show a model's parameter groups and rules.")
@chained(model_options, preprocessing_options)
@click.option(
    "--blocks", metavar="NAME=PATTERN", type=Pair("PATTERN"), multiple=True, help="Name a group."
)
@click.option("--all", "every", is_flag=True, help="One row a parameter tensor.")
def layers(model, weights, blocks, every, **overrides) -> None:
    """Show a model's parameter groups, their sizes, and the rule that serves each."""
    from gradscore.engine import gradient_norms
    from gradscore.models.groups import parameter_groups
    from gradscore.models.head import find_head

    network = load(model, weights, overrides)
    images = noise(network, 2)
    head = find_head(network, images)
    groups = parameter_groups(network, head, dict(blocks))
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    rules = gradient_norms(network, images).rules
    if every:
        group_of = {p: g for g, names in groups.items() if g != "all" for p in names}
        print_table(
            ("parameter", "group", "rule", "elements"),
            ((n, group_of.get(n, ""), rules[n], f"{size:,}") for n, size in sizes.items()),
            left=3,
        )
        return
    rows = []
    for group, names in groups.items():
        served = Counter(rules[name] for name in names)
        told = ", ".join(f"{rule} {count}" for rule, count in served.most_common())
        rows.append((group, told, str(len(names)), f"{sum(sizes[n] for n in names):,}"))
    print_table(("group", "rules (tensors)", "tensors", "elements"), rows, left=2)
    if not head.closed_form:
        click.echo(f"No closed form for `last`: {head.reason}")
