"""``gradscore extract``: run the model once over the sets, and record what it answered."""

import os
from pathlib import Path

import click

from gradscore.choices import (
    AUTO,
    DEVICES,
    GRADIENTS,
    KEPT_TYPES,
    ON_ERROR,
    PRECISIONS,
    RECORDED_METHODS,
    RECORDED_TARGETS,
)
from gradscore.cli.console import Progress, counted, notice
from gradscore.cli.options import (
    ORDER,
    TEMPERATURE,
    Pair,
    Positive,
    chained,
    model_options,
    preprocessing_options,
    quiet_option,
    run_option,
)
from gradscore.cli.results import notice_chance

EMBEDDED = {
    "digits": ("id", "digits:test"),
    "unseen": ("ood", "digits:unseen"),
    "photos": ("ood", "digits:photos"),
    "noise": ("ood", "digits:noise"),
}
"""The sets of the embedded default: digits 0-5 against digits 6-9, photographs and noise."""


class BatchSize(click.ParamType):
    """A number of images, or ``auto``."""

    name = "N|auto"

    def convert(self, value, param, ctx):
        """Return the number, or ``auto``, or fail."""
        if value == AUTO or isinstance(value, int):
            return value
        if not value.isdecimal() or int(value) < 1:
            self.fail(f"expected a positive number or auto, got {value!r}.", param, ctx)
        return int(value)


def sets_option(*names: str, help: str):
    """Return an option that takes sets of one role."""
    return click.option(*names, metavar="NAME=PATH", type=Pair("PATH"), multiple=True, help=help)


@click.command(short_help="Run a model over image sets and record its outputs.")
@chained(model_options, run_option)
@sets_option("--id", "ids", help="ID set.")
@sets_option("--ood", "oods", help="OOD set.")
@sets_option(
    "--fit-set", "fit_sets", help="ID set that methods learn from, and that is not tested on."
)
@sets_option("--data", "data", help="Another set.")
@click.option(
    "--layers",
    metavar="L",
    multiple=True,
    help="Parameters whose norms are recorded: all (default), last (forward only), a group, a "
    "glob.",
)
@click.option(
    "-p",
    "p",
    metavar="P",
    type=ORDER,
    multiple=True,
    help="Order of the norm, default 1. May be repeated.",
)
@click.option(
    "-T",
    "--temperature",
    metavar="T",
    type=TEMPERATURE,
    multiple=True,
    help="Softmax temperature, default 1, for odin 1000. May be repeated.",
)
@click.option(
    "--target",
    type=click.Choice(RECORDED_TARGETS),
    multiple=True,
    help="Target distribution of the loss, default uniform; all-ones (every class is "
    "the label; with -p 2) is for the method lee_alregib. May be repeated.",
)
@click.option(
    "--keep",
    metavar="MODULE",
    multiple=True,
    help="Store the input of this module: scores of it and of what follows, with any settings, "
    "then need no images.",
)
@click.option(
    "--keep-dtype",
    type=click.Choice(KEPT_TYPES),
    default=KEPT_TYPES[0],
    help="How --keep stores.",
)
@click.option(
    "--record",
    type=click.Choice(RECORDED_METHODS),
    multiple=True,
    help="Run what a method needs beside the forward: odin, perturbed images (--epsilon); "
    "mahalanobis, every stage's confidence (--fit); surrogates, for choose. May be repeated.",
)
@click.option(
    "--epsilon",
    metavar="E",
    type=Positive("E"),
    multiple=True,
    help="Perturbation of --record odin, in units of the normalised input. May be repeated.",
)
@click.option(
    "--fit", metavar="SET", help="Labelled ID set that --record mahalanobis learns from."
)
@click.option(
    "--blocks",
    metavar="NAME=PATTERN",
    type=Pair("PATTERN"),
    multiple=True,
    help="Name a group of parameters by a glob.",
)
@preprocessing_options
@click.option(
    "--batch-size", type=BatchSize(), default=64, show_default=True, help="Images a forward."
)
@click.option("--device", type=click.Choice(DEVICES), default=AUTO, show_default=True)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Default: float32; tf32 is for CUDA.",
)
@click.option("--workers", metavar="N", type=click.IntRange(0), help="Decoding processes.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(1),
    help="N images of each set, spread over its classes (or folders) by a fixed seed.",
)
@click.option(
    "--max-pixels",
    metavar="N",
    type=click.IntRange(1),
    help="Decode images of up to N pixels; by default Pillow's limit, 89 million.",
)
@click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    default=ON_ERROR[0],
    show_default=True,
    help="At an image that cannot be read.",
)
@click.option(
    "--gradients",
    type=click.Choice(GRADIENTS),
    default=GRADIENTS[0],
    show_default=True,
    help="How inner norms are computed; the results agree.",
)
@quiet_option
def extract(model, weights, run_path, ids, oods, fit_sets, data, quiet, **how) -> None:
    """Run the model over image sets and record features, logits and gradient norms.

    Interrupted at any moment, the same command resumes. A further set, order, temperature or
    target adds to the run; without --model and sets, those of the run are meant, and where there
    is no run the embedded model and its sets.

    PATH of a set:

    \b
    folder           images at any depth but hidden ones, links followed; for --id and
                     --fit-set sub-folders are classes: by the model's names for
                     them, by number where all are numbers, or else sorted
    .csv, .parquet   columns path, label (-1 or empty: unknown), sha256 if wanted
    .txt             a line an image: path label (OpenOOD's imglist), or path
    LIST@ROOT        one of these, its paths below ROOT, not beside the list
    .npz             images [n, h, w, c] or [n, c, h, w], uint8 or float in 0..1,
                     and labels [n], which may be absent; FILE.npz#test: of
                     test_images and test_labels
    .npy             such an array, labels.npy beside it; FILE.npy#3: the third
                     of five severities
    .tar, .tar.gz    WebDataset shards, s-{000..009}.tar: NAME.png and NAME.cls or
                     NAME.json; or folders of classes
    .parquet         with the images in it (Hugging Face): test-*.parquet
    torchvision:DATASET:SPLIT[@ROOT]
    """  # noqa: D301
    from gradscore.recorded import extract as record
    from gradscore.run import ROLE_OPTIONS, require_openable

    known = _existing(run_path)
    sets = {name: ("id", path) for name, path in ids}
    sets |= {name: ("ood", path) for name, path in oods}
    sets |= {name: ("fit", path) for name, path in fit_sets}
    sets |= {name: (None, path) for name, path in data}
    if len(sets) < len(ids) + len(oods) + len(fit_sets) + len(data):
        raise click.UsageError("Expected a different name for each set.")
    if known is not None:
        model, weights = _of_run(Path(run_path), known, model, weights)
    if sets and model is None:
        raise click.UsageError("Expected --model SPEC for these sets, as no run is there yet.")
    if not sets and known is not None and model == known.model:
        given = [entry for entry in known.sets.values() if entry.role in ROLE_OPTIONS]
        for entry in given:
            require_openable(Path(run_path), entry, ROLE_OPTIONS[entry.role])
        sets = {entry.name: (entry.role, entry.source) for entry in given}
        how["limit"] = how["limit"] or {entry.name: entry.rows for entry in given}
        if any("~" in name for name in known.sets):
            how["record"] += ("surrogates",)
    if not sets and model not in (None, "digits"):
        raise click.UsageError(
            "Expected at least one set: --id, --ood, --fit-set or --data NAME=PATH."
        )
    how["record"] += () if sets else ("surrogates",)
    run = record(
        model or "digits",
        sets or EMBEDDED,
        run_path,
        weights=weights,
        progress=Progress(quiet=quiet),
        **_settings(known if known and model == known.model else None, **how),
    )
    _report(run.store, list(sets or EMBEDDED), how["fit"], quiet)


def _existing(run_path: str):
    """Return what the run says, or None where there is no run yet."""
    if not Path(run_path, "run.json").exists():
        return None
    from gradscore.run import RunStore

    return RunStore(run_path).info


def _of_run(path: Path, known, model: str | None, weights: str | None):
    """Return the model and its weights; where it is the run's, what is not given is the run's."""
    from gradscore.models import ModelSpec
    from gradscore.run import model_of

    named = None if model is None else str(ModelSpec.parse(model))
    if named not in (None, known.model):
        return model, weights
    return model_of(path, known, named, weights)


def _settings(known, **how) -> dict:
    """Return the arguments of the extraction; what is not given comes from the run, if any."""
    from gradscore.layers.groups import FIXED
    from gradscore.models.preprocessing import Preprocessing

    names = ("resize", "crop", "mean", "std", "interpolation")
    overrides = {name: how.pop(name) for name in names}
    if known is not None:
        recorded = Preprocessing.from_dict(known.preprocessing)
        how["preprocessing"] = recorded.with_overrides(**overrides)
        how["precision"] = how["precision"] or known.precision
    else:
        how["preprocessing"] = overrides
        how["precision"] = how["precision"] or PRECISIONS[0]
    defaults = {"layers": ("all",), "p": (1.0,), "target": ("uniform",)}
    for name, default in defaults.items():
        how[name] = how[name] or default
    how["temperature"] = how["temperature"] or None
    groups = known.groups if known is not None else {}
    how["blocks"] = dict(how["blocks"]) or {
        name: members for name, members in groups.items() if name not in FIXED
    }
    if how["workers"] is None:
        how["workers"] = min(4, (os.cpu_count() or 1) - 1)
    return how


def _report(store, sets: list[str], fit: str | None, quiet: bool) -> None:
    if store.info.notice:
        notice(f"{store.info.model}: {store.info.notice}.", quiet=quiet)
    for name in sets:
        entry = store.sets[name]
        if entry.failed:
            notice(f"{name}: {counted(len(entry.failed), 'image')} skipped:")
        for row in entry.failed:
            named = row.path in row.reason
            notice(f"  {row.reason}" if named else f"  {row.path}: {row.reason}")
    for entry in store.info.fits.values():
        if entry.notice and fit in entry.sets:
            notice(f"{fit}: {entry.notice}.", quiet=quiet)
    notice_chance(store, sets, quiet=quiet)
    images = sum(store.sets[name].recorded() for name in sets)
    what = f"{counted(images, 'image')} in {counted(len(sets), 'set')} recorded."
    notice(f"{store.path}: {what}", quiet=quiet)
