"""``gradscore bench``: throughput beside its physical limit and the peers, on this machine."""

import click


@click.group(short_help="Measure throughput beside limits and peers.")
def bench() -> None:
    """Measure how fast this machine scores, beside its limits and the alternatives."""
