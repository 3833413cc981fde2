"""What ``run.json`` says, as dataclasses.

Format 2 added ``class_names``, the roles ``fit`` and ``surrogate``, and passes of the kind
``blocks``; a run of format 1 has none of them.
"""

from dataclasses import dataclass, field
from typing import Any

from gradscore.choices import STORED
from gradscore.strict_json import MAY_BE_ABSENT

BASE = "base"
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
        kind: One of :data:`gradscore.run.layout.KINDS`.
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
        span: The images that this part of a run is to cover, the first and the one after the
            last; None for all.
    """

    name: str
    role: str | None
    source: str
    manifest_sha256: str
    rows: int
    notice: str = ""
    failed: list[FailedRow] = field(default_factory=list)
    passes: dict[str, list[Shard]] = field(default_factory=dict)
    span: tuple[int, ...] | None = field(default=None, metadata=MAY_BE_ABSENT)

    @property
    def start(self) -> int:
        """The first image that is to be covered."""
        return self.span[0] if self.span else 0

    @property
    def stop(self) -> int:
        """The one after the last image that is to be covered."""
        return self.span[1] if self.span else self.rows

    def done(self, name: str) -> int:
        """Return the image up to which pass ``name`` has covered the set, from the first on."""
        shards = self.passes.get(name, [])
        return shards[-1].stop if shards else self.start

    def complete(self, name: str) -> bool:
        """Return whether pass ``name`` has covered every image that it is to."""
        return name in self.passes and self.done(name) == self.stop

    def recorded(self) -> int:
        """Return the number of rows of the base pass: images less those that failed."""
        return sum(shard.rows for shard in self.passes.get(BASE, []))


@dataclass
class PartInfo:
    """Which part of a run a directory holds: consecutive images of each set.

    Attributes:
        number: Its number, 1 to ``count``.
        count: Number of parts.
        unit: Parts are cut at multiples of so many images: whole batches, so that the same images
            meet in a batch as where one process records all.
    """

    number: int
    count: int
    unit: int

    def span(self, rows: int) -> tuple[int, int]:
        """Return the first image of the part in a set of ``rows``, and the one after the last.

        >>> [PartInfo(number, 3, 64).span(250) for number in (1, 2, 3)]
        [(0, 64), (64, 128), (128, 250)]
        """
        units = -(-rows // self.unit)
        start, stop = (units * k // self.count for k in (self.number - 1, self.number))
        return min(rows, start * self.unit), min(rows, stop * self.unit)

    def __str__(self) -> str:
        """Return the part as the command line has it."""
        return f"{self.number}/{self.count}"


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
        part: Which part of a larger run this is; None for a whole run.
        stored: What is kept of the last layer, of :data:`gradscore.choices.STORED`.
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
    part: PartInfo | None = field(default=None, metadata=MAY_BE_ABSENT)
    stored: str = field(default=STORED[0], metadata=MAY_BE_ABSENT)
    format: int = FORMAT
