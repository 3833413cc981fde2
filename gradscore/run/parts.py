"""The parts of a run that several processes record: each in a directory of its own, as a run is.

``RUN/.parts/3-of-8`` is the third of eight. A part that is recorded a second time while the first
process still writes it takes ``3-of-8.1``, and so on: no two processes write one directory.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gradscore.errors import RunError
from gradscore.run.contents import Arrays, read_fit_file
from gradscore.run.layout import FitInfo, PartInfo
from gradscore.run.names import PARTS, RUN_FILE
from gradscore.run.reader import RunReader

_FOLDER = re.compile(r"([1-9]\d{0,8})-of-([1-9]\d{0,8})(?:\.([1-9]\d{0,8}))?")


class PartFolder(NamedTuple):
    """One directory that holds a part of a run.

    Attributes:
        number: The part's number, from 1 on.
        count: Number of parts.
        attempt: 0 for the first directory of the part, 1 for the second and so on.
        run: The directory of the run that it is a part of.
    """

    number: int
    count: int
    attempt: int
    run: Path

    @property
    def name(self) -> str:
        """The directory's path below the run."""
        again = f".{self.attempt}" if self.attempt else ""
        return f"{PARTS}/{self.number}-of-{self.count}{again}"

    @property
    def path(self) -> Path:
        """The directory."""
        return self.run / self.name

    def read(self) -> RunReader | None:
        """Return what is recorded in the directory, or None where nothing is yet.

        Raises:
            RunError: If it is damaged, or holds another part than its name says.
        """
        if not (self.path / RUN_FILE).exists():
            return None
        reader = RunReader(self.path)
        part = reader.info.part
        if part is None or (part.number, part.count) != (self.number, self.count):
            raise RunError(
                f"Expected part {self.number}/{self.count} in {self.path}, got {part or 'a run'}; "
                "delete that directory, and record the part again."
            )
        return reader


def part_folders(run: Path) -> list[PartFolder]:
    """Return the directories of a run's parts, in the order of parts and attempts.

    Raises:
        RunError: If a link stands in the place of one.
    """
    return sorted(_folders(run))


def next_attempt(run: Path, part: PartInfo, there: list[PartFolder]) -> PartFolder:
    """Return the directory for a part, beside those that are there of it."""
    attempt = 1 + max((folder.attempt for folder in there), default=-1)
    return PartFolder(part.number, part.count, attempt, run)


def in_parts(run: Path) -> bool:
    """Return whether a run has parts that are not merged yet."""
    return any(True for _ in _folders(run))


def part_of(run: Path) -> RunReader | None:
    """Return what is recorded in the first directory of a part, or None where there is none."""
    readers = (folder.read() for folder in part_folders(run))
    return next((reader for reader in readers if reader is not None), None)


def shared_fit(run: Path, name: str) -> tuple[FitInfo, Arrays] | None:
    """Return a fit from the whole run or any part that holds it; None from none.

    Raises:
        RunError: If the file that one names is missing or damaged.
    """
    whole = [RunReader(run)] if (run / RUN_FILE).exists() else []
    for reader in (*whole, *(folder.read() for folder in part_folders(run))):
        fit = reader.info.fits.get(name) if reader is not None else None
        if fit is not None:
            return fit, read_fit_file(reader.path, reader.info, fit)
    return None


def _folders(run: Path) -> Iterator[PartFolder]:
    place = run / PARTS
    if place.is_symlink():
        raise RunError(f"Expected the folder of a run's parts, got the link {place}; delete it.")
    if not place.is_dir():
        return
    for entry in place.iterdir():
        match = _FOLDER.fullmatch(entry.name)
        if match is None:
            continue
        if entry.is_symlink() or not entry.is_dir():
            raise RunError(f"Expected a directory of a part, got {entry}; delete it.")
        number, count, attempt = match.groups()
        yield PartFolder(int(number), int(count), int(attempt or 0), run)
