"""How a run is laid out: the names in its directory, and what ``run.json`` says, as dataclasses.

Numbers in names are canonical. Format 2 added ``class_names``, the roles ``fit`` and
``surrogate``, and passes of the kind ``blocks``; a run of format 1 has none of them.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gradscore.errors import RunError
from gradscore.norms import number_name

RUN_FILE = "run.json"
HEAD_FILE = "head.safetensors"
LOCK_FILE = ".lock"
FITS = "fits"
CHOICE_FILE = f"{FITS}/choice.json"
"""Which score was last chosen for the run's model."""
BASE = "base"
TAKEN = ("mean", FITS, RUN_FILE, HEAD_FILE)
"""No names for sets: an evaluation's row over all OOD sets, and what lies beside the sets."""
FIELDS = {
    "norms": "norms",
    "keep": "activations",
    "odin": "logits",
    "mahalanobis": "confidences",
}
"""Kind of a pass, with which its name begins, to the dataset that holds its values."""
BLOCKS = "blocks"
"""Kind and name of the pass that holds a dataset a block of the network: its channel means."""
KINDS = (*FIELDS, BLOCKS)
ROLES = ("id", "ood", "fit", None)
"""What a user's set may be for; ``fit``: ID data that methods learn from, and never a test set."""
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


FORMAT = 2
FORMATS = (1, FORMAT)
"""Formats that are read; only the last is written."""


@dataclass
class Shard:
    """One file of consecutive rows; ``rows`` of the images ``start`` to ``stop`` could be read."""

    file: str
    sha256: str
    start: int
    stop: int
    rows: int
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class FailedRow:
    """An image that could not be read or scored, and why."""

    index: int
    path: str
    reason: str


@dataclass
class PassInfo:
    """One recorded pass: norms of a target, temperature and order, or what a method reads.

    Attributes:
        name: Its folder's name.
        kind: One of :data:`gradscore.run.layout.FIELDS`.
        temperature: Of ``norms`` and ``odin``.
        parameters: Of ``norms``: the parameter behind each column.
        rules: Of ``norms``: what computed each parameter's norm.
        details: Of ``keep``: module, precision and shape. Of ``odin``: epsilon. Of
            ``mahalanobis``: the fit, its magnitude, and the stage behind each column. Of
            ``blocks``: the number of channels of each block.
    """

    name: str
    kind: str
    target: str | None = None
    temperature: float | None = None
    p: float | None = None
    gradients: str | None = None
    parameters: tuple[str, ...] = ()
    rules: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class FitInfo:
    """What a method learned from sets of the run.

    Attributes:
        name: Its file's name below ``fits/``; it says the method, the sets, and by a digest also
            the settings and what the sets hold.
        sets: The sets it was learned from, and the SHA-256 of their lists.
        settings: Everything else that the result depends on.
        notice: What the user should know about the fit, or empty.
        sha256: Of the file; None as long as there is none.
    """

    name: str
    method: str
    sets: dict[str, str]
    settings: dict[str, Any]
    notice: str = ""
    sha256: str | None = None


@dataclass
class SetInfo:
    """One set of images, and the finished shards of each of its passes in index order.

    Attributes:
        role: One of :data:`gradscore.run.layout.ROLES`.
        rows: Number of images, whether or not they could be read.
        notice: What the user should know about the labels, or empty.
        failed: The images without rows.
    """

    name: str
    role: str | None
    source: str
    manifest_sha256: str
    rows: int
    notice: str = ""
    failed: list[FailedRow] = field(default_factory=list)
    passes: dict[str, list[Shard]] = field(default_factory=dict)

    def done(self, name: str) -> int:
        """Return how many of the set's images pass ``name`` has covered, from the first on."""
        shards = self.passes.get(name, [])
        return shards[-1].stop if shards else 0

    def complete(self, name: str) -> bool:
        """Return whether pass ``name`` has covered every image."""
        return name in self.passes and self.done(name) == self.rows

    def recorded(self) -> int:
        """Return the number of rows of the base pass: images less those that failed."""
        return sum(shard.rows for shard in self.passes.get(BASE, []))


@dataclass
class HeadInfo:
    """The last layer: where it is, and whether it alone turns features into logits."""

    module: str | None
    weights: tuple[str, ...]
    bias: str | None
    closed_form: bool
    reason: str = ""
    sha256: str | None = None


@dataclass
class RunInfo:
    """Everything that a run is about; one model in one configuration.

    Attributes:
        class_names: The model's class names in the order of its logits, where they are known.
        parameters: Name of every parameter and its number of entries, in the model's order.
        groups: Parameter names of ``last``, ``block1`` and so on.
        passes: Every recorded pass but the base pass, by name.
        fits: What was learned from sets of the run, by name.
        notice: What the user should know about the model's outputs, or empty.
    """

    model: str
    weights: str | None
    weights_sha256: str
    preprocessing: dict[str, Any]
    precision: str
    classes: int
    features: int
    input_shape: tuple[int, ...]
    head: HeadInfo
    parameters: dict[str, int]
    groups: dict[str, tuple[str, ...]]
    versions: dict[str, str] = field(default_factory=dict)
    passes: dict[str, PassInfo] = field(default_factory=dict)
    sets: dict[str, SetInfo] = field(default_factory=dict)
    fits: dict[str, FitInfo] = field(default_factory=dict)
    notice: str = ""
    class_names: tuple[str, ...] | None = None
    format: int = FORMAT
