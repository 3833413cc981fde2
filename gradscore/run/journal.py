"""The journal of a run that is written: what each shard adds to ``run.json``, a line a shard.

``run.json`` grows with the run. Rewriting it after every shard would cost more with each, so that
while a run is written only a line is appended, and the whole is written once at the end. A line
carries the SHA-256 of itself and of all before it, from the checksum of ``run.json`` on: a journal
of another ``run.json`` is known as such, and nothing can be changed, left out or put in between.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradscore.run.files import DamagedFile
from gradscore.run.layout import FailedRow, RunInfo, Shard
from gradscore.strict_json import Unexpected, parse, typed

DIGITS = 64
"""Of a SHA-256 in hexadecimal."""


@dataclass
class Entry:
    """What one step of an extraction adds to a set.

    Attributes:
        set: Name of the set.
        shards: Pass name to its new shard.
        failed: Images of the shards' range that have no row.
    """

    set: str
    shards: dict[str, Shard]
    failed: list[FailedRow]

    def apply(self, info: RunInfo) -> None:
        """Add the entry to what ``run.json`` says.

        Raises:
            Unexpected: If there is no such set.
        """
        if self.set not in info.sets:
            raise Unexpected(f"expected a set of the run, not {self.set!r}")
        entry = info.sets[self.set]
        for name, shard in self.shards.items():
            entry.passes.setdefault(name, []).append(shard)
        entry.failed.extend(self.failed)


class Journal:
    """Makes the lines of a journal.

    Args:
        checksum: That of the ``run.json`` that the lines add to.
    """

    def __init__(self, checksum: str) -> None:
        self._checksum, self._before = checksum, checksum
        self.begun = False

    def line(self, name: str, shards: Mapping[str, Shard], failed: Sequence[FailedRow]) -> bytes:
        """Return what is to be appended for a step; the first line says whose journal it is."""
        head = b"" if self.begun else _head(self._checksum)
        self.begun = True
        content = json.dumps(dataclasses.asdict(Entry(name, dict(shards), list(failed)))).encode()
        self._before = _chained(self._before, content)
        return head + self._before.encode() + b" " + content + b"\n"


def entries_of(journal: bytes, checksum: str, path: Path) -> list[Entry]:
    """Return what a journal adds to a ``run.json``.

    The last line may be cut short, where its writer was killed: its shard is then written again.

    Args:
        journal: The file's bytes.
        checksum: That of the ``run.json``; a journal of another adds nothing.
        path: What errors call the file.

    Raises:
        DamagedFile: If a line is not as it was written.
    """
    if b"\n" not in journal:
        return []
    head, *lines = journal.split(b"\n")
    of = head[:DIGITS].decode(errors="replace")
    if head + b"\n" != _head(of):
        raise DamagedFile(path, "is damaged: its first line is not as it was written")
    if of != checksum:
        return []
    found, before = [], checksum
    for number, line in enumerate(lines[:-1], 2):
        content = line[DIGITS + 1 :]
        before = _chained(before, content)
        if line[: DIGITS + 1] != before.encode() + b" ":
            raise DamagedFile(path, f"is damaged: line {number} is not as it was written")
        try:
            found.append(typed(Entry, parse(content.decode()), f"line {number}"))
        except (UnicodeDecodeError, Unexpected) as error:
            raise DamagedFile(path, f"is damaged: {error}") from None
    return found


def _chained(before: str, content: bytes) -> str:
    return hashlib.sha256(before.encode() + content).hexdigest()


def _head(checksum: str) -> bytes:
    """Return the first line; a changed digit must not make it that of another ``run.json``."""
    return f"{checksum} {_chained('', checksum.encode())}\n".encode()
