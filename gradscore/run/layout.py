"""What ``run.json`` says, as dataclasses.

The file carries a SHA-256 of its own bytes (taken with the checksum's digits as zeros), so that
no altered character goes unnoticed.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradscore.errors import RunError
from gradscore.run.files import DamagedFile
from gradscore.run.names import BASE

FORMAT = 1
_CHECKSUM = re.compile(rb'"checksum": "([0-9a-f]{64})"\n}\n\Z')


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
    """One recorded question: norms of a target, temperature and order, or what a method reads.

    Attributes:
        name: Its folder's name.
        kind: One of :data:`gradscore.run.names.FIELDS`.
        temperature: Of ``norms`` and ``odin``.
        parameters: Of ``norms``: the parameter behind each column.
        rules: Of ``norms``: what computed each parameter's norm.
        details: Of ``keep``: module, precision and shape. Of ``odin``: epsilon. Of
            ``mahalanobis``: the fit, its magnitude, and the stage behind each column.
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
        name: Its file's name below ``fits/``; it tells the method, the sets, and by a digest also
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
        role: ``id``, ``ood`` or None.
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
        parameters: Name of every parameter and its number of entries, in the model's order.
        groups: Parameter names of ``last``, ``block1`` and so on.
        passes: Every recorded question but the base pass, by name.
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
    format: int = FORMAT


def encode(info: RunInfo) -> bytes:
    """Return the content of ``run.json``."""
    content = {**asdict(info), "checksum": "0" * 64}
    text = json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
    blank = text.encode()
    before, _, after = blank.rpartition(b"0" * 64)
    return before + hashlib.sha256(blank).hexdigest().encode() + after


def decode(content: bytes, path: Path) -> RunInfo:
    """Return what ``run.json`` says.

    Raises:
        DamagedFile: If it is damaged.
        RunError: If it is of a format that this version does not know.
    """
    match = _CHECKSUM.search(content)
    if match is None:
        raise DamagedFile(path, "is damaged: it does not end in its checksum")
    blank = content[: match.start(1)] + b"0" * 64 + content[match.end(1) :]
    if hashlib.sha256(blank).hexdigest().encode() != match.group(1):
        raise DamagedFile(path, "is damaged: its content does not agree with its checksum")
    fields = json.loads(content)
    if fields["format"] != FORMAT:
        raise RunError(
            f"Expected a run of format {FORMAT}, got format {fields['format']} in {path}; it was "
            "written by another version of gradscore."
        )
    del fields["checksum"]
    fields["head"] = HeadInfo(**{**fields["head"], "weights": tuple(fields["head"]["weights"])})
    fields["input_shape"] = tuple(fields["input_shape"])
    fields["groups"] = {name: tuple(members) for name, members in fields["groups"].items()}
    fields["passes"] = {name: _pass(entry) for name, entry in fields["passes"].items()}
    fields["sets"] = {name: _set(entry) for name, entry in fields["sets"].items()}
    fields["fits"] = {name: FitInfo(**entry) for name, entry in fields.get("fits", {}).items()}
    return RunInfo(**fields)


def _pass(entry: dict[str, Any]) -> PassInfo:
    p = math.inf if entry["p"] == "inf" else entry["p"]
    return PassInfo(**{**entry, "p": p, "parameters": tuple(entry["parameters"])})


def _set(entry: dict[str, Any]) -> SetInfo:
    passes = {
        name: [Shard(**shard) for shard in shards] for name, shards in entry["passes"].items()
    }
    failed = [FailedRow(**row) for row in entry["failed"]]
    return SetInfo(**{**entry, "failed": failed, "passes": passes})


def _finite(value: Any) -> Any:
    """Return ``value`` with infinity as text, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return "inf" if value == math.inf else value
