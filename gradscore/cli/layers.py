"""``gradscore layers``: the parameter groups of a model, and the rule that serves each."""

from collections import Counter
from collections.abc import Iterable

import click

from gradscore.cli.console import notice, print_table, say
from gradscore.cli.models import load, noise
from gradscore.cli.options import (
    Pair,
    chained,
    model_options,
    output_option,
    preprocessing_options,
    quiet_option,
)


@click.command(short_help="Show a model's parameter groups and rules.")
@chained(model_options, preprocessing_options)
@click.option(
    "--blocks", metavar="NAME=PATTERN", type=Pair("PATTERN"), multiple=True, help="Name a group."
)
@click.option("--all", "every", is_flag=True, help="One row a parameter tensor.")
@chained(output_option(".csv, .md, .json, .parquet"), quiet_option)
def layers(model, weights, blocks, every, output, quiet, **overrides) -> None:
    """Show a model's parameter groups, their sizes, and the rule that serves each."""
    from gradscore.engine import gradient_norms
    from gradscore.layers.groups import parameter_groups
    from gradscore.layers.head import find_head
    from gradscore.tables import ROW_ENDINGS, check_output, write_rows

    if output:
        check_output(output, ROW_ENDINGS)
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
                "rules": _told(rules[name] for name in names),
                "tensors": len(names),
                "elements": sum(sizes[name] for name in names),
            }
            for group, names in groups.items()
        ]
    cells = [[f"{v:,}" if isinstance(v, int) else v for v in row.values()] for row in rows]
    if output:
        write_rows(output, rows)
        notice(f"Wrote {output}.", quiet=quiet)
    print_table(tuple(rows[0]), cells, left=3 if every else 2)
    if not head.closed_form:
        say(f"No closed form for `last`: {head.reason}")


def _told(rules: Iterable[str]) -> str:
    """Return each rule with the number of tensors that it serves."""
    return ", ".join(f"{rule} {count}" for rule, count in Counter(rules).most_common())
