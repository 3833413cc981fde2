"""``run.json`` as bytes, and back; what is not exactly as it was written is refused.

The file carries a SHA-256 of its own bytes (taken with the checksum's digits as zeros), so that
no altered character goes unnoticed. A checksum is easily made, though: JSON becomes dataclasses
strictly, nothing missing, nothing extra, every value of its type; and what a run says is checked
against what could have been recorded before anything is done with it.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradscore.choices import KEPT_TYPES, STORED
from gradscore.errors import RunError
from gradscore.run import layout, names
from gradscore.run.contents import shard_file
from gradscore.run.files import DamagedFile
from gradscore.run.journal import entries_of
from gradscore.run.layout import PassInfo, RunInfo, SetInfo
from gradscore.run.names import JOURNAL_FILE
from gradscore.strict_json import Unexpected, parse, typed

ABSENT = {1: ("class_names", "fits", "notice"), 2: ()}
"""Format to the fields that may be absent, and then have their defaults."""
UNKNOWN = {1: ("class_names",), 2: ()}
"""Format to the fields that it does not have."""
_CHECKSUM = re.compile(rb'"checksum": "([0-9a-f]{64})"\n}\n\Z')


def encode(info: RunInfo) -> bytes:
    """Return the content of ``run.json``."""
    content = {**dataclasses.asdict(info), "checksum": "0" * 64}
    text = json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
    blank = text.encode()
    before, _, after = blank.rpartition(b"0" * 64)
    return before + hashlib.sha256(blank).hexdigest().encode() + after


def checksum_of(content: bytes) -> str | None:
    """Return the checksum that a ``run.json`` ends in; None where it does not."""
    match = _CHECKSUM.search(content, max(0, len(content) - 100))
    return match and match.group(1).decode()


def decode(content: bytes, path: Path, journal: bytes = b"") -> RunInfo:
    """Return what ``run.json`` says, and what its journal adds.

    Args:
        content: The bytes of ``run.json``.
        path: What errors call it.
        journal: The bytes of the journal beside it.

    Raises:
        DamagedFile: If one of them is damaged, or says what no run could.
        RunError: If it is of a format that this version does not know.
    """
    match = _CHECKSUM.search(content, max(0, len(content) - 100))
    if match is None:
        raise DamagedFile(path, "is damaged: it does not end in its checksum")
    blank = content[: match.start(1)] + b"0" * 64 + content[match.end(1) :]
    if hashlib.sha256(blank).hexdigest().encode() != match.group(1):
        raise DamagedFile(path, "is damaged: its content does not agree with its checksum")
    try:
        fields = parse(content.decode())
        if not isinstance(fields, dict):
            raise Unexpected("it is no object")
        known = fields.get("format")
        if known not in layout.FORMATS or isinstance(known, bool):
            raise RunError(
                f"Expected a run of format {' or '.join(map(str, layout.FORMATS))}, got format "
                f"{known!r} in {path}; it was written by another version of gradscore."
            )
        del fields["checksum"]
        for name in UNKNOWN[known]:
            _require(name not in fields, f"no {name!r} in a run of format {known}")
        info = typed(RunInfo, fields, "", ABSENT[known])
        _check(info)
    except UnicodeDecodeError:
        raise DamagedFile(path, "is damaged: it is not UTF-8") from None
    except Unexpected as error:
        raise DamagedFile(path, f"is damaged: {error}") from None
    return _with_journal(info, journal, match.group(1).decode(), path.with_name(JOURNAL_FILE))


def _with_journal(info: RunInfo, journal: bytes, checksum: str, path: Path) -> RunInfo:
    entries = entries_of(journal, checksum, path)
    try:
        for entry in entries:
            entry.apply(info)
        if entries:
            _check(info)
    except Unexpected as error:
        raise DamagedFile(path, f"is damaged: {error}") from None
    return info


def _check(info: RunInfo) -> None:
    """Raise where a run says what could not have been recorded.

    Raises:
        Unexpected: Naming what.
    """
    _require(info.classes > 1 and info.features >= 0, "two classes or more")
    _require(info.input_shape and min(info.input_shape) > 0, "an input_shape of positive sizes")
    _require(
        info.class_names is None or len(info.class_names) == info.classes,
        f"{info.classes} class_names",
    )
    _require(all(size >= 0 for size in info.parameters.values()), "parameters of positive sizes")
    _require(
        info.stored in STORED and (info.stored == STORED[0] or info.head.sha256 is not None),
        f"{' or '.join(STORED)} as stored, with a last layer that gives what is not",
    )
    part = info.part
    _require(
        part is None or (1 <= part.number <= part.count and part.unit > 0 and info.format > 1),
        "a part of 1 to their count, cut at a positive unit",
    )
    for name, members in info.groups.items():
        _require(
            set(members) <= set(info.parameters), f"parameters of the model in group {name!r}"
        )
    for name, entry in info.passes.items():
        _require(name == entry.name, f"pass {name!r} under its name")
        _check_pass(info, entry)
    for name, entry in info.sets.items():
        _require(name == entry.name, f"set {name!r} under its name")
        _check_set(info, entry)
    for name, fit in info.fits.items():
        _require(name == fit.name and _is_name(name), f"fit {name!r} under its name")
        _require(set(fit.sets) <= set(info.sets), f"sets of the run in fit {name!r}")


def _check_pass(info: RunInfo, entry: PassInfo) -> None:
    details, what = entry.details, f"in pass {entry.name!r}"
    allowed = layout.KINDS if info.format > 1 else layout.FIELDS
    _require(
        _is_name(entry.name) and entry.kind in allowed, f"a name and a kind that are known {what}"
    )
    _require(
        entry.name.startswith(f"{entry.kind}-") or entry.name == entry.kind == layout.BLOCKS,
        f"a name that begins with the kind {what}",
    )
    _require(set(entry.parameters) <= set(info.parameters), f"parameters of the model {what}")
    _require(
        all(value is None or value > 0 for value in (entry.p, entry.temperature)),
        f"a positive order and temperature {what}",
    )
    if entry.kind == "norms":
        asked = (entry.target, entry.temperature, entry.p)
        _require(
            None not in asked and entry.parameters, f"target, temperature, p, parameters {what}"
        )
    elif entry.kind == "keep":
        _require(entry.name == f"keep-{details.get('module')}", f"its module {what}")
        _require(
            details.get("dtype") in KEPT_TYPES, f"a dtype of {' or '.join(KEPT_TYPES)} {what}"
        )
        _require(_is_shape(details.get("shape")), f"a shape {what}")
    elif entry.kind == "odin":
        epsilon = details.get("epsilon")
        known = isinstance(epsilon, int | float) and epsilon > 0 and entry.temperature is not None
        _require(known, f"epsilon and temperature {what}")
    elif entry.kind == "mahalanobis":
        stages, fit = details.get("stages"), details.get("fit")
        _require(isinstance(stages, Mapping) and stages, f"stages {what}")
        known = info.fits.get(fit) if isinstance(fit, str) else None
        _require(known and known.method == "mahalanobis_stages", f"a fit of the run {what}")
        _require(known.settings.get("stages") == stages, f"the stages of its fit {what}")
    else:
        channels = details.get("channels")
        known = isinstance(channels, Mapping) and _is_shape(list(channels.values()))
        _require(known and "index" not in channels, f"the channels of each block {what}")


def _check_set(info: RunInfo, entry: SetInfo) -> None:
    what = f"in set {entry.name!r}"
    roles = (*layout.ROLES, names.SURROGATE) if info.format > 1 else ("id", "ood", None)
    _require(entry.role in roles, f"a role that is known {what}, not {entry.role!r}")
    try:
        names.check_set_name(entry.name, entry.role)
    except RunError as error:
        raise Unexpected(str(error)) from None
    _require(entry.rows >= 0, f"a number of rows {what}")
    span = None if info.part is None else info.part.span(entry.rows)
    _require(entry.span == span, f"the span {span} {what}, not {entry.span}")
    places = [row.index for row in entry.failed]
    _require(
        places == sorted(set(places)) and all(0 <= place < entry.rows for place in places),
        f"failed images of the set, in their order, {what}",
    )
    for name, shards in entry.passes.items():
        _require(name == layout.BASE or name in info.passes, f"passes of the run {what}")
        for number, shard in enumerate(shards):
            file = shard_file(entry.name, name, number)
            _require(shard.file == file, f"the file {file} {what}, not {shard.file!r}")
            _require(min(shard.start, shard.stop, shard.rows) >= 0, f"numbers of rows in {file}")
            size = shard.settings.get("batch_size", 1)
            _require(type(size) is int and size > 0, f"a batch_size of 1 or more in {file}")


def _require(holds: object, what: str) -> None:
    if not holds:
        raise Unexpected(f"expected {what}")


def _is_name(name: str) -> bool:
    try:
        return bool(names.check_name(name, "name"))
    except RunError:
        return False


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _finite(value: Any) -> Any:
    """Return ``value`` with infinity as text, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return "inf" if value == math.inf else value
