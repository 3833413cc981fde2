"""Verification of a run: every checksum, every row range, every join, reported file by file."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gradscore.errors import RunError
from gradscore.run import names
from gradscore.run.damage import remedy
from gradscore.run.files import DamagedFile, may_not_read
from gradscore.run.layout import RunInfo, SetInfo, Shard
from gradscore.run.shard import open_shard
from gradscore.run.store import RunStore

READ_BYTES = 1 << 20
Fault = tuple[str, str]


class Problem(NamedTuple):
    """One fault: the file, relative to the run, what is wrong, and what makes it again.

    Attributes:
        remedy: The command to run after the file was deleted, between backticks.
    """

    file: str
    reason: str
    remedy: str


def check(path: str | Path) -> list[Problem]:
    """Verify every byte that a run has finished, and that its files agree with each other.

    Unfinished passes are no fault. Memory does not grow with the run.

    Args:
        path: The run's directory.

    Returns:
        All faults found, in the order of the files; empty for a sound run.

    Raises:
        RunError: If there is no run in ``path``, or a file may not be read.
    """
    root = Path(path)
    try:
        info = RunStore(root).info
    except RunError as error:
        if not isinstance(error.__cause__, DamagedFile):
            raise
        return [Problem(names.RUN_FILE, str(error.__cause__), remedy(root, None, names.RUN_FILE))]
    faults = [*_check_head(root, info), *_check_fits(root, info)]
    for entry in info.sets.values():
        for name, shards in entry.passes.items():
            faults += _check_ranges(entry, name, shards)
            for shard in shards:
                faults += _check_shard(root, entry, name, shard)
    return [Problem(file, reason, remedy(root, info, file)) for file, reason in faults]


def _check_head(root: Path, info: RunInfo) -> Iterator[Fault]:
    if info.head.sha256 is not None:
        reason = _digest_fault(root / names.HEAD_FILE, info.head.sha256)
        if reason:
            yield (names.HEAD_FILE, reason)


def _check_fits(root: Path, info: RunInfo) -> Iterator[Fault]:
    for name, fit in info.fits.items():
        reason = _digest_fault(root / names.fit_file(name), fit.sha256)
        if reason:
            yield (names.fit_file(name), reason)


def _check_ranges(entry: SetInfo, name: str, shards: list[Shard]) -> Iterator[Fault]:
    expected = 0
    failed = {row.index for row in entry.failed}
    for shard in shards:
        if shard.start != expected or not shard.start <= shard.stop <= entry.rows:
            yield (
                shard.file,
                f"expected images from {expected} on, got {shard.start} to {shard.stop} "
                f"of {entry.rows}",
            )
        missing = sum(shard.start <= index < shard.stop for index in failed)
        if shard.rows != shard.stop - shard.start - missing:
            yield (
                shard.file,
                f"expected {shard.stop - shard.start - missing} rows, got {shard.rows} in pass "
                f"{name}",
            )
        expected = shard.stop


def _check_shard(root: Path, entry: SetInfo, name: str, shard: Shard) -> Iterator[Fault]:
    reason = _digest_fault(root / shard.file, shard.sha256)
    if reason:
        yield (shard.file, reason)
        return
    try:
        with open_shard(root, shard) as opened:
            fields = opened.fields()
            lost = {row.index for row in entry.failed} & set(opened.index.tolist())
    except RunError as error:
        yield (shard.file, str(error))
        return
    if lost:
        yield (shard.file, f"holds image {min(lost)}, which is recorded as failed")
    wanted = names.pass_field(name)
    if wanted not in fields and shard.rows:
        yield (shard.file, f"expected a dataset {wanted}, got {', '.join(fields)}")


def _digest_fault(path: Path, sha256: str) -> str | None:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(READ_BYTES):
                digest.update(part)
    except PermissionError as error:
        raise may_not_read(path) from error
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if digest.hexdigest() != sha256:
        return "is damaged: its SHA-256 is not the recorded one"
    return None
