"""Verification of a run: what its readers would refuse, all of it, file by file."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gradscore.errors import RunError
from gradscore.run.arrays import read_fit_file, read_head
from gradscore.run.damage import remedy
from gradscore.run.files import DamagedFile
from gradscore.run.layout import RunInfo, Shard
from gradscore.run.opening import ShardReader
from gradscore.run.ranges import range_faults
from gradscore.run.store import RunStore

PART_BYTES = 1 << 24


class Problem(NamedTuple):
    """One fault: the file, relative to the run, what is wrong, and what makes it again.

    Attributes:
        remedy: What to run after the file was deleted: commands between backticks.
    """

    file: str
    reason: str
    remedy: str


def check(path: str | Path) -> list[Problem]:
    """Verify every byte that a run has finished, and that its files agree with each other.

    Every file goes through what reads it elsewhere: what is sound here is read there, and what is
    refused there is reported here. Unfinished passes are no fault. Memory does not grow with the
    run.

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
        faults = list(_faults(root, info))
    except RunError as error:
        if not isinstance(error.__cause__, DamagedFile):
            raise
        info, faults = None, [error.__cause__]
    told = ((fault.path.relative_to(root).as_posix(), fault.fault) for fault in faults)
    return [Problem(*fault, remedy(root, info, fault[0])) for fault in dict.fromkeys(told)]


def _faults(root: Path, info: RunInfo) -> Iterator[DamagedFile]:
    if info.head.sha256 is not None:
        yield from _fault(read_head, root, info)
    for fit in info.fits.values():
        yield from _fault(read_fit_file, root, info, fit)
    for entry in info.sets.values():
        for name, shards in entry.passes.items():
            faults = list(range_faults(root, entry, name))
            told = {fault.path for fault in faults}
            yield from faults
            reader = ShardReader(root, info, entry, name)
            for shard in shards:
                # Rows that are not those of the shard's range were told of already.
                if root / shard.file not in told:
                    yield from _fault(_read_all, reader, shard)


def _fault(read: Callable, *arguments: object) -> Iterator[DamagedFile]:
    try:
        read(*arguments)
    except DamagedFile as fault:
        yield fault


def _read_all(reader: ShardReader, shard: Shard) -> None:
    """Read every row of a shard.

    Raises:
        DamagedFile: If it is damaged, or a value is not finite.
    """
    with reader.open(shard) as opened:
        for name, field in reader.fields.items():
            rows = max(1, PART_BYTES // max(1, field.row_bytes))
            for start in range(0, shard.rows, rows):
                values = opened.read(name, start, min(start + rows, shard.rows))
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    raise DamagedFile(
                        reader.root / shard.file, f"is damaged: {name} are not all finite"
                    )
