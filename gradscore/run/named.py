"""What a run names outside of itself: a model, its weights, and where its sets came from.

A run may come from someone else. What it names is at most read: as tensors or as pictures, out of
regular files, and held to the digests in the run. What could do more (import code, follow an
address, unpickle) is used only where the user names it, too.
"""

import glob
import os
import shlex
from pathlib import Path

from gradscore.errors import RunError
from gradscore.run.layout import RunInfo, SetInfo

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
