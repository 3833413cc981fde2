"""What messages tell the user to paste: commands that add to a run, or make a file of it again.

A run knows its model, weights, preprocessing, sets and how many images of each it took, so that a
command has to say only where the run is and what to record.

A run may come from someone else. The model, weights and sets that it names outside of itself are
at most read: as tensors or as pictures, out of regular files, and checked against the digests in
the run. What could do more (import code, follow an address, unpickle) is used only where the user
names it, too; a message holds the option that does.
"""

import glob
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradscore.errors import RunError
from gradscore.norms import number_name
from gradscore.run.contents import FIT_ENDING
from gradscore.run.files import DamagedFile
from gradscore.run.layout import BLOCKS, FORMAT, FitInfo, PassInfo, RunInfo, SetInfo
from gradscore.run.names import (
    ARRAYS,
    CHOICE_FILE,
    FITS,
    HEAD_FILE,
    JOURNAL_FILE,
    SELECTION,
    SURROGATE,
    norms_name,
)

Options = tuple[str, ...]
ROLE_OPTIONS = {"id": "--id", "ood": "--ood", "fit": "--fit-set", None: "--data"}


def command(name: str, run: str | os.PathLike, *options: str) -> str:
    """Return a command about a run, between backticks.

    >>> command("score", "my run", "-p", "2")
    "`gradscore score --run 'my run' -p 2`"
    """
    return f"`{shlex.join(('gradscore', name, '--run', os.fspath(run), *options))}`"


def extract_command(run: Any, *options: str) -> str:
    """Return the command that records something in a run, between backticks.

    Args:
        run: The run's directory, or its reader: then the model is named where it has to be.
        *options: What to record.
    """
    if isinstance(run, str | os.PathLike):
        return command("extract", run, *options)
    if run.info.model == ARRAYS:  # which answer nothing else: a run of the model itself does
        return command("extract", f"{os.fspath(run.path)}-model", "--model", "SPEC", *options)
    return command("extract", run.path, *naming_options(run.info), *options)


def merge_command(run: str | os.PathLike) -> str:
    """Return the command that joins the parts of a run, between backticks."""
    return f"`{shlex.join(('gradscore', 'run', 'merge', os.fspath(run)))}`"


def remove_command(run: str | os.PathLike, set_name: str) -> str:
    """Return the command that forgets a set of a run, between backticks."""
    return f"`{shlex.join(('gradscore', 'run', 'remove', set_name, '--run', os.fspath(run)))}`"


def new_run_command(run: str | os.PathLike) -> str:
    """Return the command that makes a run, but for what only the user knows."""
    sets = ("--id", "NAME=PATH", "--ood", "NAME=PATH")
    return extract_command(run, "--model", "SPEC", *sets)


def again_command(run: str | os.PathLike, info: RunInfo) -> str:
    """Return the command that records the model and sets of a run in a new one beside it."""
    model = ("--model", info.model, *(("--weights", info.weights) if info.weights else ()))
    sets = [
        option
        for entry in info.sets.values()
        if entry.role != SURROGATE
        for option in (ROLE_OPTIONS[entry.role], f"{entry.name}={entry.source}")
    ]
    return extract_command(f"{os.fspath(run).rstrip('/')}-{FORMAT}", *model, *sets)


def norms_options(layers: str, target: str, temperature: float, p: float) -> Options:
    """Return what records the gradient norms of ``layers``."""
    how = ("-p", number_name(p), "-T", number_name(temperature), "--target", target)
    return ("--layers", layers, *how)


def odin_options(temperature: float, epsilon: float) -> Options:
    """Return what records the logits of perturbed inputs."""
    how = ("-T", number_name(temperature), "--epsilon", number_name(epsilon))
    return ("--layers", "last", "--record", "odin", *how)


def mahalanobis_options(info: RunInfo, fit: str) -> Options:
    """Return what records every stage's confidence, fitted to a set of the run."""
    return ("--layers", "last", "--record", "mahalanobis", "--fit", fit, *skipping(info, fit))


def skipping(info: RunInfo, name: str) -> Options:
    """Return what reads a set as it was read before: without images that cannot be."""
    return ("--on-error", "skip") if info.sets[name].failed else ()


def keep_options(module: str, dtype: str = "float32") -> Options:
    """Return what stores the input of a module."""
    return ("--layers", "last", "--keep", module, "--keep-dtype", dtype)


def pass_options(info: RunInfo, name: str) -> Options:
    """Return what records a pass of the run, its base pass too, as it was recorded."""
    entry = info.passes.get(name)
    if entry is None or entry.kind == BLOCKS:
        return ("--layers", "last")
    if entry.kind == "odin":
        return odin_options(entry.temperature, entry.details["epsilon"])
    if entry.kind == "mahalanobis":
        return mahalanobis_options(info, name.partition("-")[2])
    if entry.kind == "keep":
        return keep_options(entry.details["module"], entry.details["dtype"])
    how = norms_options(_layers(entry), entry.target, entry.temperature, entry.p)
    return (*how, *(("--gradients", entry.gradients) if entry.gradients != "rules" else ()))


def _layers(entry: PassInfo) -> str:
    plain = norms_name(entry.target, entry.temperature, entry.p)
    layers = entry.name.removeprefix(plain).removeprefix("-")
    return ",".join(entry.parameters) if layers.startswith(SELECTION) else layers or "all"


def require_newest(info: RunInfo, path: Path) -> None:
    """Raise unless a run is of the format that is written.

    Raises:
        RunError: If it is of an older one; the message holds the command that records it anew.
    """
    if info.format != FORMAT:
        raise RunError(
            f"Expected a run of format {FORMAT} to add to, got format {info.format} in {path}, "
            f"which is read as it is but not changed; record a new one with "
            f"{again_command(path, info)}."
        )


@contextmanager
def repair_hint(run: Path, info: RunInfo | None) -> Iterator[None]:
    """Add to an error about a damaged file what makes it again.

    Args:
        run: The run's directory.
        info: What ``run.json`` says; None where it is damaged itself.
    """
    try:
        yield
    except DamagedFile as error:
        again = repair_commands(run, info, error.path.relative_to(run).as_posix())
        delete = "delete it, then " if os.path.lexists(error.path) else ""
        raise RunError(f"{error}; {delete}make it again with {again}.") from error


def repair_commands(run: Path, info: RunInfo | None, file: str) -> str:
    """Return what makes a file again after it was deleted: commands between backticks.

    Args:
        run: The run's directory.
        info: What ``run.json`` says; None where it is damaged itself: then all is recorded anew.
        file: The file below the run, or a folder: what makes all that is in it follows then.
    """
    folder, _, inner = file.partition("/")
    if info is not None and info.model == ARRAYS and folder in (*info.sets, HEAD_FILE):
        entry = info.sets.get(folder)
        named = (ROLE_OPTIONS[entry.role], entry.name) if entry else ("--head", "FILE")
        words = ("gradscore", "run", "import", os.fspath(run), *named, "...")
        return f"`{shlex.join(words)}`"
    if folder == JOURNAL_FILE:  # what it said is recorded again
        return extract_command(run, *(naming_options(info) if info else ()))
    if info is None or folder not in (*info.sets, FITS, HEAD_FILE):
        return new_run_command(run)
    named = naming_options(info)
    if folder == HEAD_FILE:
        return extract_command(run, *named, "--layers", "last")
    if file == CHOICE_FILE:
        return command("choose", run)
    if folder == FITS:
        fits = [info.fits[inner.removesuffix(FIT_ENDING)]] if inner else info.fits.values()
        commands = [_fit_command(run, info, fit) for fit in fits] or [command("choose", run)]
    else:
        passes = [inner.partition("/")[0]] if inner else info.sets[folder].passes
        skip = skipping(info, folder)
        commands = [
            extract_command(run, *named, *pass_options(info, name), *skip) for name in passes
        ]
    return " and ".join(dict.fromkeys(commands))


def _fit_command(run: Path, info: RunInfo, fit: FitInfo) -> str:
    if fit.method == "mahalanobis_stages":
        how = mahalanobis_options(info, *fit.sets)
        return extract_command(run, *naming_options(info), *how)
    given = [(o, fit.settings.get(o)) for o in ("percentile", "dimension", "clip")]
    options = [word for o, value in given if value is not None for word in (f"--{o}", str(value))]
    return command("score", run, "--method", fit.method, "--fit", ",".join(fit.sets), *options)


FAMILIES = ("digits", "cifar", "bit", "timm", "torchvision")
"""Families whose models are built by code that is installed here, from nothing but numbers."""
ARGUMENTS = ("num_classes", "in_chans", "img_size", "patch_size", "pad_type", "global_pool")
"""Arguments of such models that do no more than shape them."""
OPENED = ("digits:",)
"""Beginnings of sources that are no path, and open nothing outside."""


def must_be_named(model: str) -> bool:
    """Return whether a model that a run names is built only where the user names it, too.

    >>> must_be_named("timm:resnet18?num_classes=10"), must_be_named("python:os:system?command=ls")
    (False, True)
    """
    head, _, query = model.partition("?")
    keys = [part.partition("=")[0] for part in query.split("&") if part]
    return head.partition(":")[0] not in FAMILIES or any(key not in ARGUMENTS for key in keys)


def naming_options(info: RunInfo) -> tuple[str, ...]:
    """Return the options that name a run's model where it must be named, and is no module."""
    if not must_be_named(info.model) or not set(":?") & set(info.model):
        return ()
    return ("--model", info.model, *(("--weights", info.weights) if info.weights else ()))


def model_of(
    path: Path, info: RunInfo, named: str | None, weights: str | None = None
) -> tuple[str, str | None]:
    """Return the model of a run and where its weights are, to be built.

    Args:
        path: The run's directory.
        info: What the run says.
        named: What the user calls the model, or None.
        weights: What the user gives as its weights, or None for those that the run names.

    Raises:
        RunError: If the user must name the model and did not, or named another; or if no
            extraction could have recorded where its weights are.
    """
    if named is None and must_be_named(info.model):
        raise RunError(
            f"The run {path} names the model {info.model!r}, which could run code or fetch files, "
            "and is built only where you name it, too: add "
            f"`{shlex.join(naming_options(info) or ('--model', 'SPEC'))}` if you trust it (in "
            "Python `Run(PATH, MODEL)`)."
        )
    if named not in (None, info.model):
        raise RunError(f"Expected the run's model {info.model!r}, got {named!r}.")
    if weights is not None:
        return info.model, weights
    weights = info.weights
    if weights is not None and os.sep in weights and os.path.abspath(weights) != weights:
        raise RunError(
            f"Expected the absolute path of the model's weights in the run {path}, got "
            f"{weights!r}; give `weights='FILE'`."
        )
    return info.model, weights


def require_openable(path: Path, entry: SetInfo, option: str) -> None:
    """Raise where the source of a run's set is opened only if the user names it, too.

    Args:
        path: The run's directory.
        entry: The set.
        option: What the command line calls sets of its role.

    Raises:
        RunError: If it is a data set of a library, which may unpickle or fetch what it finds; or
            a pattern of folders, which may be searched for ever.
    """
    family, colon, _ = entry.source.partition(":")
    of_library = colon and os.sep not in family and not entry.source.startswith(OPENED)
    searches = glob.has_magic(os.path.dirname(entry.source)) and not os.path.exists(entry.source)
    if of_library or searches:
        again = shlex.join((option, f"{entry.name}={entry.source}"))
        raise RunError(
            f"The run {path} names the set {entry.name} as {entry.source!r}, which is opened only "
            f"where you name it, too: add `{again}` if you trust it."
        )
