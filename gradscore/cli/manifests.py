"""``gradscore manifest``: the lists of images of a declared benchmark."""

from pathlib import Path

import click

from gradscore.cli.console import notice, print_table, say


@click.group(short_help="Build and check lists of a benchmark's images.")
def manifest() -> None:
    """Build and check lists of images with SHA-256, from a benchmark declared in a file."""


@manifest.command(short_help="Write a list of each set's images.")
@click.argument("benchmark", metavar="BENCHMARK.json")
@click.argument("root", metavar="ROOT", type=click.Path(exists=True, file_okay=False))
@click.option(
    "-o", "--output", metavar="DIR", default=".", show_default=True, help="Folder for the lists."
)
@click.option(
    "--set", "sets", metavar="NAME", multiple=True, help="Only this set. May be repeated."
)
def build(benchmark, root, output, sets) -> None:
    """Write DIR/<set>.csv for each set of BENCHMARK.json from the images below ROOT.

    Each row is path, label, sha256. A set that is not there is named, the others are written, and
    the command exits with 1.
    """
    from gradscore.data.declared import build_list
    from gradscore.errors import DataError

    whole = True
    for declared in _chosen(benchmark, sets):
        path = Path(output) / f"{declared.name}.csv"
        try:
            count = build_list(declared, root, path)
        except DataError as error:
            whole = False
            notice(f"Error: {error}")
            continue
        differs = "" if count == declared.count else f" (declared: {declared.count})"
        say(f"{path}: {count} images{differs}")
    if not whole:
        raise click.exceptions.Exit(1)


@manifest.command(short_help="Say what is missing or differs.")
@click.argument("benchmark", metavar="BENCHMARK.json")
@click.argument("root", metavar="ROOT", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--lists",
    metavar="DIR",
    help="Folder of the lists that `build` wrote; every image is compared with them.",
)
@click.option(
    "--set", "sets", metavar="NAME", multiple=True, help="Only this set. May be repeated."
)
def check(benchmark, root, lists, sets) -> None:
    """Say what is missing or differs below ROOT; exit with 1 if anything does."""
    from gradscore.data.declared import problems

    rows, whole = [], True
    for declared in _chosen(benchmark, sets):
        listed = Path(lists) / f"{declared.name}.csv" if lists else None
        found = list(problems(declared, root, listed))
        whole = whole and not found
        rows.extend((declared.name, problem) for problem in found or ["as declared"])
    print_table(("set", "finding"), rows, left=2)
    if not whole:
        raise click.exceptions.Exit(1)


def _chosen(benchmark: str, sets: tuple[str, ...]) -> list:
    from gradscore.data.declared import read_declaration
    from gradscore.errors import InvalidArgument

    declared = {entry.name: entry for entry in read_declaration(benchmark)}
    for name in sets:
        if name not in declared:
            raise InvalidArgument(f"Unknown set {name!r}; declared: {', '.join(declared)}.")
    return [declared[name] for name in sets or declared]
