"""The names of what lies in a run's directory; numbers in them are canonical."""

import hashlib
import re
from collections.abc import Sequence

from gradscore.errors import RunError
from gradscore.norms import number_name

RUN_FILE = "run.json"
JOURNAL_FILE = ".journal"
"""What was added to the run since ``run.json`` was written."""
HEAD_FILE = "head.safetensors"
LOCK_FILE = ".lock"
FITS = "fits"
PARTS = ".parts"
"""Folder of a run that holds its parts; no set can have that name."""
TASKS = ".tasks"
"""Folder of a run for shards that the tasks of a cluster wrote, and that have no place yet."""
CHOICE_FILE = f"{FITS}/choice.json"
"""Which score was last chosen for the run's model."""
TAKEN = ("mean", FITS, RUN_FILE, HEAD_FILE)
"""No names for sets: an evaluation's row over all OOD sets, and what lies beside the sets."""
ARRAYS = "arrays"
"""The model of a run that was made of arrays."""
SURROGATE = "surrogate"
"""The role of a set that was made from another, and is named after it, ``NAME~KIND``."""
SELECTION = "selection-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it can name a folder of the run.

    Raises:
        RunError: If it is empty, or holds more than letters, digits and ``. _ + -``.
    """
    if not _NAME.fullmatch(name):
        raise RunError(
            f"Expected a {what} of letters a-z A-Z, digits and . _ + - only, got {name!r}."
        )
    return name


def check_set_name(name: str, role: str | None = None) -> str:
    """Return ``name`` if it can name a set.

    Args:
        name: The name.
        role: The set's role: surrogates, and no others, have names with a ``~``.

    Raises:
        RunError: If it cannot name a folder, or names something else already.
    """
    if name in TAKEN:
        raise RunError(f"Expected another set name than {', '.join(TAKEN)}, got {name!r}.")
    if role != SURROGATE:
        return check_name(name, "set name")
    made_from, tilde, kind = name.partition("~")
    if not tilde:
        raise RunError(f"Expected a surrogate set's name as NAME~KIND, got {name!r}.")
    check_set_name(made_from)
    check_name(kind, "kind of surrogate")
    return name


def norms_name(
    target: str,
    temperature: float,
    p: float,
    layers: str = "all",
    parameters: Sequence[str] = (),
) -> str:
    """Return the name of the pass that records norms; the numbers are canonical.

    Args:
        target: Target distribution of the loss.
        temperature: Softmax temperature.
        p: Order of the norm.
        layers: What the user calls the parameters. Where that cannot be part of a name, a digest
            of the parameters stands for it.
        parameters: The parameters themselves.

    >>> norms_name("uniform", 1.0, float("inf")), norms_name("one-hot", 0.50, 2, "block4")
    ('norms-uniform-T1-pinf', 'norms-one-hot-T0.5-p2-block4')
    """
    name = f"norms-{target}-T{number_name(temperature)}-p{number_name(p)}"
    if layers == "all":
        return name
    if not _NAME.fullmatch(layers):
        digest = hashlib.sha256(",".join(parameters).encode())
        layers = f"{SELECTION}{digest.hexdigest()[:8]}"
    return f"{name}-{layers}"


def odin_name(temperature: float, epsilon: float) -> str:
    """Return the name of the pass that holds the logits of inputs perturbed as ODIN does.

    >>> odin_name(1000.0, 0.0014)
    'odin-T1000-eps0.0014'
    """
    return f"odin-T{number_name(temperature)}-eps{number_name(epsilon)}"


def mahalanobis_name(fit: str) -> str:
    """Return the name of the pass that holds each stage's confidence.

    Args:
        fit: Name of the labelled set that the stages' Gaussians were fitted to.
    """
    return f"mahalanobis-{fit}"
