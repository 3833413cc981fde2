"""Whether a run is sound: every byte that was finished, and every file beside the others."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gradscore.errors import RunError
from gradscore.run.choice_file import read_choice_file
from gradscore.run.contents import read_fit_file, read_head
from gradscore.run.files import DamagedFile
from gradscore.run.hashed import AHEAD
from gradscore.run.hints import repair_commands
from gradscore.run.layout import RunInfo
from gradscore.run.reader import read_info
from gradscore.run.shard import ShardReader


class Problem(NamedTuple):
    """One fault: the file, relative to the run, what is wrong, and what makes it again.

    Attributes:
        repair: What to run after the file was deleted: commands between backticks.
    """

    file: str
    reason: str
    repair: str


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
        info = read_info(root)
        faults = list(_faults(root, info))
    except RunError as error:
        if not isinstance(error.__cause__, DamagedFile):
            raise
        info, faults = None, [error.__cause__]
    reported = ((fault.path.relative_to(root).as_posix(), fault.fault) for fault in faults)
    return [
        Problem(*fault, repair_commands(root, info, fault[0])) for fault in dict.fromkeys(reported)
    ]


def _faults(root: Path, info: RunInfo) -> Iterator[DamagedFile]:
    if info.head.sha256 is not None:
        yield from _fault(read_head, root, info)
    for fit in info.fits.values():
        yield from _fault(read_fit_file, root, info, fit)
    yield from _fault(read_choice_file, root)
    for entry in info.sets.values():
        for name in entry.passes:
            reader = ShardReader(root, info, entry, name)
            faults = list(reader.range_faults())
            yield from faults
            reported = {fault.path for fault in faults}
            # Rows that are not those of the shard's range were reported already.
            shards = [one for one in reader.shards if root / one.file not in reported]
            for place, shard in enumerate(shards):
                following = shards[place + 1 : place + 1 + AHEAD]
                yield from _fault(reader.verify, shard, following)
            reader.close()


def _fault(read: Callable, *arguments: object) -> Iterator[DamagedFile]:
    try:
        read(*arguments)
    except DamagedFile as fault:
        yield fault
