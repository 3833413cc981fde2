"""``gradscore extract``: run the model once over the sets, and record what it answered."""

import os
from pathlib import Path

import click

from gradscore.choices import PRECISIONS, STORED
from gradscore.cli.console import Progress, notice
from gradscore.cli.extraction_options import extract_options
from gradscore.cli.results import notice_chance
from gradscore.escapes import counted

EMBEDDED = {
    "digits": ("id", "digits:test"),
    "unseen": ("ood", "digits:unseen"),
    "photos": ("ood", "digits:photos"),
    "noise": ("ood", "digits:noise"),
}
"""The sets of the embedded default: digits 0-5 against digits 6-9, photographs and noise."""


@click.command(short_help="Run a model over image sets and record its outputs.")
@extract_options
def extract(model, weights, run_path, ids, oods, fit_sets, data, quiet, **how) -> None:
    """Run the model over image sets and record features, logits and gradient norms.

    After an interruption the same command goes on. Later commands may add sets, orders,
    temperatures and targets to the run; without --model and sets they take those of the run.
    Where there is no run yet, the embedded model and its sets are taken.

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
    _report(run.store, list(sets or EMBEDDED), how["fit"], run_path, quiet)


def _existing(run_path: str):
    """Return what the run says, or a part of it; None where there is neither yet."""
    from gradscore.run.names import PARTS
    from gradscore.run.parts import part_of
    from gradscore.run.reader import RunReader

    if Path(run_path, "run.json").exists():
        return RunReader(run_path).info
    part = part_of(Path(run_path)) if Path(run_path, PARTS).is_dir() else None
    return None if part is None else part.info


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
        how["store"] = how["store"] or known.stored
    else:
        how["preprocessing"] = overrides
        how["precision"] = how["precision"] or PRECISIONS[0]
        how["store"] = how["store"] or STORED[0]
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


def _report(store, sets: list[str], fit: str | None, run_path: str, quiet: bool) -> None:
    from gradscore.run.hints import merge_command

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
    if store.info.stored != STORED[0]:
        apart = [
            shard.settings.get("logits_apart", 0.0)
            for name in sets
            for shard in store.sets[name].passes.get("base", ())
        ]
        largest = f"{max(apart, default=0.0):.2g}"
        notice(f"Logits of the stored features: at most {largest} from the model's.", quiet=quiet)
    notice_chance(store, sets, quiet=quiet)
    images = sum(store.sets[name].recorded() for name in sets)
    what = f"{counted(images, 'image')} in {counted(len(sets), 'set')} recorded."
    notice(f"{store.path}: {what}", quiet=quiet)
    if store.info.part is not None:
        join, count = merge_command(run_path), store.info.part.count
        notice(f"Once all {count} parts are recorded, {join} joins them.", quiet=quiet)
