"""``gradscore run``: look into a run, verify it, and join its parts."""

import itertools
from pathlib import Path

import click

from gradscore.cli.console import notice, print_facts, print_table, say
from gradscore.cli.options import quiet_option, run_option, run_place
from gradscore.escapes import counted

SHOWN = 10
"""Class names in print."""


@click.group(short_help="Inspect, verify, merge or import a run.")
def run() -> None:
    """Inspect a run, verify every byte of it, or make one of your own features and logits."""


@run.command(short_help="Show what a run holds.")
@run_place
def info(run_path) -> None:
    """Show what a run holds: its model, its sets, and what is recorded of each."""
    from gradscore.run import BASE, RunStore
    from gradscore.run.description import preprocessing_text, weights_text

    store = RunStore(run_path)
    about = store.info
    facts = {
        "run": run_path,
        "model": about.model,
        "weights": weights_text(about),
        "weights' SHA-256": about.weights_sha256,
        "preprocessing": preprocessing_text(about),
        "outputs": about.notice or "logits",
        "precision": about.precision,
        "features, classes": f"{about.features}, {about.classes}",
        "class names": _names(about.class_names),
        "last layer": ", ".join(about.head.weights)
        + ("" if about.head.closed_form else f" (no closed form: {about.head.reason})"),
        "groups": ", ".join(about.groups),
        "versions": ", ".join(f"{k} {v}" for k, v in about.versions.items()),
    }
    for entry in about.sets.values():
        facts[f"set {entry.name}"] = ", ".join(filter(None, (entry.role, entry.source)))
    print_facts(facts)
    rows = []
    for entry in about.sets.values():
        for name in (BASE, *(name for name in entry.passes if name != BASE)):
            rows.append(
                (
                    entry.name,
                    name,
                    f"{entry.done(name):,} of {entry.rows:,}",
                    str(len(entry.failed)),
                )
            )
    print_table(("set", "pass", "images", "failed"), rows, left=2)
    if about.fits:
        fits = [(name, entry.method, ", ".join(entry.sets)) for name, entry in about.fits.items()]
        print_table(("fit", "method", "sets"), fits, left=3)


def _names(class_names: tuple[str, ...] | None) -> str:
    """Return the first of the class names, and how many more there are."""
    if class_names is None:
        return "unknown"
    more = f" and {counted(len(class_names) - SHOWN, 'other')}"
    return ", ".join(class_names[:SHOWN]) + (more if len(class_names) > SHOWN else "")


@run.command(short_help="Verify every byte of a run.")
@run_place
def check(run_path) -> None:
    """Verify every checksum and row range of a run; exit with 1 if anything is wrong."""
    from gradscore.run import RunStore
    from gradscore.run import check as find_problems

    problems = find_problems(run_path)
    if problems:
        print_table(("file", "problem"), [problem[:2] for problem in problems], left=2)
        say("Delete these files, then make them again:")
        told = [problem.repair.strip("`").split("` and `") for problem in problems]
        for command in dict.fromkeys(itertools.chain(*told)):
            say(f"  {command}")
        raise click.exceptions.Exit(1)
    about = RunStore(run_path).info
    shards = sum(len(s) for e in about.sets.values() for s in e.passes.values())
    verified = counted(shards + len(about.fits), "file")
    say(f"{run_path}: no damage found in {verified}.")


@run.command(short_help="Join the parts of a run.")
@run_place
@quiet_option
def merge(run_path, quiet) -> None:
    """Join the parts that `gradscore extract --part I/N` recorded, without copying a row.

    What is missing is named with the command that records it. After an
    interruption the same command goes on.
    """
    from gradscore.run import merge as join
    from gradscore.run.reader import RunReader

    merged = join(run_path)
    images = sum(entry.recorded() for entry in RunReader(run_path).sets.values())
    what = f"{counted(images, 'image')} in {counted(len(merged.sets), 'set')}"
    notice(f"{run_path}: {counted(merged.parts, 'part')} joined, {what}.", quiet=quiet)
    for folder in merged.left:
        notice(f"{folder} is still being written, and was left; delete it later.", quiet=quiet)


@run.command(name="import", short_help="Bring features and logits of your own into a run.")
@run_place
@click.option(
    "--id", "ids", metavar="NAME", help="Name of the set, an ID set. Default: its file's name."
)
@click.option("--ood", "oods", metavar="NAME", help="Name of the set, an OOD set.")
@click.option(
    "--fit-set", "fit_sets", metavar="NAME", help="Name of the set, one that methods learn from."
)
@click.option("--data", "data", metavar="NAME", help="Name of the set, one without a role.")
@click.option(
    "--features",
    metavar="F.npy",
    required=True,
    help="Inputs of the last layer, [rows, in_features].",
)
@click.option("--logits", metavar="L.npy", required=True, help="Its outputs, [rows, classes].")
@click.option(
    "--head",
    metavar="H.safetensors",
    help="Last layer: weight [classes, in_features], and bias [classes] if it has one. A new run "
    "needs it.",
)
@click.option("--labels", metavar="Y.npy", help="Class numbers, [rows]; -1: unknown.")
@quiet_option
def import_(run_path, features, logits, head, labels, quiet, **named) -> None:
    """Bring a set of features and logits that another program computed into a run.

    Each call brings one set; the first makes the run. Every method that reads features, logits
    and the last layer then scores it.
    """
    from gradscore.run import ROLE_OPTIONS, import_set

    roles = dict(zip(("ids", "oods", "fit_sets", "data"), ROLE_OPTIONS, strict=True))
    given = [(name, roles[key]) for key, name in named.items() if name is not None]
    if len(given) > 1:
        raise click.UsageError("Expected one of --id, --ood, --fit-set and --data, got several.")
    name, role = given[0] if given else (Path(features).stem, "id")
    arrays = {"features": features, "logits": logits, "head": head, "labels": labels}
    imported = import_set(run_path, name, role, **arrays)
    if imported.notice:
        notice(f"{imported.notice}.", quiet=quiet)
    notice(f"{run_path}: set {name}, {counted(imported.rows, 'image')}.", quiet=quiet)


@run.command(short_help="Remove a set from a run.")
@click.argument("set_name", metavar="SET")
@run_option
@quiet_option
def remove(set_name, run_path, quiet) -> None:
    """Remove a set from a run: delete its files, and what methods learned from it."""
    from gradscore.run import RunStore, remove_set

    with RunStore.open_for_writing(run_path) as store:
        others = remove_set(store, set_name)
    with_it = f", and with it {', '.join(others)}" if others else ""
    notice(f"{run_path}: set {set_name} removed{with_it}.", quiet=quiet)
