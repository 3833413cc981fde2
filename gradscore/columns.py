"""Columns of figures, in memory or on the disk: those of ten million rows take gigabytes."""

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import RunError

IN_MEMORY = 256 << 20
"""Bytes of columns up to which they are held in memory."""


class DiskColumns(Mapping[str, NDArray[np.float64]]):
    """Columns of float64 in a file that nothing names, gone with the object.

    Args:
        names: Their names.
        rows: The rows of each.

    Raises:
        RunError: If the file cannot be made.
    """

    def __init__(self, names: Sequence[str], rows: int) -> None:
        self._places, self._rows = {name: place for place, name in enumerate(names)}, rows
        try:
            self._file = tempfile.TemporaryFile(prefix="gradscore-")  # noqa: SIM115
        except OSError as error:
            raise _no_room(error) from None
        weakref.finalize(self, self._file.close)

    def put(self, name: str, start: int, values: NDArray[np.float64]) -> None:
        """Write consecutive rows of a column.

        Raises:
            RunError: If the disk is full.
        """
        content = memoryview(np.ascontiguousarray(values, np.float64)).cast("B")
        offset = 8 * (self._places[name] * self._rows + start)
        try:
            while content:
                written = os.pwrite(self._file.fileno(), content, offset)
                content, offset = content[written:], offset + written
        except OSError as error:
            raise _no_room(error) from None

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """Return a column, read for this call."""
        column = np.empty(self._rows)
        content = memoryview(column).cast("B")
        offset = 8 * self._places[name] * self._rows
        while content:
            count = os.preadv(self._file.fileno(), [content], offset)
            if not count:
                raise RunError("The file with the scores ends before its size; run it again.")
            content, offset = content[count:], offset + count
        return column

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._places)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self._places)


class MemoryColumns(dict[str, NDArray[np.float64]]):
    """The same in memory.

    Args:
        names: Their names.
        rows: The rows of each.
    """

    def __init__(self, names: Sequence[str], rows: int) -> None:
        super().__init__({name: np.empty(rows) for name in names})

    def put(self, name: str, start: int, values: NDArray[np.float64]) -> None:
        """Write consecutive rows of a column."""
        self[name][start : start + len(values)] = values


def columns_for(names: Sequence[str], rows: int) -> DiskColumns | MemoryColumns:
    """Return room for columns: in memory, or on the disk where they are large."""
    large = 8 * rows * len(names) > IN_MEMORY
    return (DiskColumns if large else MemoryColumns)(names, rows)


def _no_room(error: OSError) -> RunError:
    folder = tempfile.gettempdir()
    return RunError(
        f"Cannot keep scores in {folder}: {error.strerror}; make room there, or name another "
        "folder in the variable TMPDIR."
    )
