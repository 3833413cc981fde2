"""Columns of figures, in memory or on the disk: those of ten million rows take gigabytes."""

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import RunError

IN_MEMORY = 256 << 20
"""Bytes of columns up to which they are held in memory."""


class NoRoom(RunError):
    """The disk has no room for what would be kept there for a while."""


class ArrayFile:
    """Arrays in a file that nothing names, gone with the object.

    Args:
        kinds: Name of an array to its type and the shape of a row.
        rows: The rows of each.

    Raises:
        NoRoom: If the file cannot be made.
    """

    def __init__(self, kinds: Mapping[str, tuple[np.dtype, tuple[int, ...]]], rows: int) -> None:
        self._kinds = {name: (np.dtype(dtype), shape) for name, (dtype, shape) in kinds.items()}
        self._offsets, end = {}, 0
        for name in kinds:
            self._offsets[name] = end
            end += rows * self._row_bytes(name)
        try:
            self._file = tempfile.TemporaryFile(prefix="gradscore-")  # noqa: SIM115
        except OSError as error:
            raise _no_room(error) from None
        weakref.finalize(self, self._file.close)

    def put(self, name: str, start: int, values: NDArray) -> None:
        """Write consecutive rows of an array.

        Raises:
            NoRoom: If the disk is full.
        """
        content = memoryview(np.ascontiguousarray(values, self._kinds[name][0])).cast("B")
        offset = self._offsets[name] + start * self._row_bytes(name)
        try:
            while content:
                written = os.pwrite(self._file.fileno(), content, offset)
                content, offset = content[written:], offset + written
        except OSError as error:
            raise _no_room(error) from None

    def take(self, name: str, start: int, stop: int) -> NDArray:
        """Return rows ``start`` to ``stop`` of an array, read for this call.

        Raises:
            RunError: If they were not written.
        """
        dtype, shape = self._kinds[name]
        rows = np.empty((stop - start, *shape), dtype)
        content = memoryview(rows).cast("B")
        offset = self._offsets[name] + start * self._row_bytes(name)
        while content:
            count = os.preadv(self._file.fileno(), [content], offset)
            if not count:
                raise RunError("The file with the scores ends before its size; run it again.")
            content, offset = content[count:], offset + count
        return rows

    def _row_bytes(self, name: str) -> int:
        dtype, shape = self._kinds[name]
        return dtype.itemsize * prod(shape)


class DiskColumns(Mapping[str, NDArray[np.float64]]):
    """Columns of float64 on the disk.

    Args:
        names: Their names.
        rows: The rows of each.

    Raises:
        NoRoom: If the file cannot be made.
    """

    def __init__(self, names: Sequence[str], rows: int) -> None:
        self._names, self._rows = list(names), rows
        self._file = ArrayFile({name: (np.dtype(np.float64), ()) for name in names}, rows)

    def put(self, name: str, start: int, values: NDArray[np.float64]) -> None:
        """Write consecutive rows of a column.

        Raises:
            NoRoom: If the disk is full.
        """
        self._file.put(name, start, values)

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        """Return a column, read for this call."""
        return self._file.take(name, 0, self._rows)

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self._names)


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


def _no_room(error: OSError) -> NoRoom:
    folder = tempfile.gettempdir()
    return NoRoom(
        f"Cannot keep scores in {folder}: {error.strerror}; make room there, or name another "
        "folder in the variable TMPDIR."
    )
