"""NumPy's .npy and .npz files read without belief: no pickle, no bomb, every byte checked.

An archive says of each array how large it is, packed and unpacked, in three places; where they
disagree, or an array would unfold to far more than its file, nothing is read.
"""

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gradscore.files import most_unfolded, open_regular

ENDING = ".npy"
_PART = 1 << 22
_ENCRYPTED = 1
_LOCAL_HEADER, _LOCAL_LENGTHS = 30, 26
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Header:
    """How an array lies in a file.

    Attributes:
        shape: Its shape.
        dtype: Type of its entries, never Python objects.
        order: ``C`` or ``F``.
        length: Bytes of the header itself.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    order: str
    length: int

    @property
    def size(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class ArrayArchive:
    """An .npz, open for reading.

    Attributes:
        names: Names of its arrays.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._archive = zipfile.ZipFile(file)
        members = self._archive.infolist()
        self.names = [
            one.filename.removesuffix(ENDING) for one in members if one.filename.endswith(ENDING)
        ]
        if len({one.filename for one in members}) < len(members):
            raise ValueError("a name comes twice in the archive")

    def checksums(self, names: Sequence[str | None] | None = None) -> list[str]:
        """Return what identifies the content of some arrays, or of all members."""
        chosen = None if names is None else {f"{name}{ENDING}" for name in names}
        return [
            f"{one.filename} {one.CRC:08x}"
            for one in self._archive.infolist()
            if chosen is None or one.filename in chosen
        ]

    def header(self, name: str) -> Header:
        """Return how an array lies in its member, checked against what the archive says.

        Raises:
            ValueError: If they disagree, or it cannot be read safely.
        """
        info = self._archive.getinfo(name + ENDING)
        if info.flag_bits & _ENCRYPTED:
            raise ValueError(f"the array {name} is encrypted")
        if info.compress_type not in _METHODS:
            raise ValueError(f"the array {name} is compressed by method {info.compress_type}")
        if info.file_size > most_unfolded(info.compress_size):
            raise ValueError(
                f"the array {name} would unfold from {info.compress_size:,} bytes to "
                f"{info.file_size:,}"
            )
        with self._archive.open(info) as member:
            header = _read_header(member, name)
        if header.length + header.size != info.file_size:
            raise ValueError(
                f"the array {name} is of {header.size:,} bytes by its shape, of "
                f"{info.file_size - header.length:,} in the archive"
            )
        return header

    def read(self, name: str) -> NDArray:
        """Return an array; its checksum is compared.

        Raises:
            ValueError: If it is damaged or cannot be read safely.
        """
        header = self.header(name)
        result = np.empty(math.prod(header.shape), header.dtype)
        into = memoryview(result).cast("B") if header.size else memoryview(b"")
        for start, part in self._parts(name, header):
            into[start : start + len(part)] = part
        return result.reshape(header.shape, order=header.order)

    def mapped(self, name: str, *, check: bool) -> NDArray | None:
        """Return an array in its place in the file, or None where it is compressed.

        Args:
            name: Name of the array.
            check: Whether its checksum is compared first, which reads it once.

        Raises:
            ValueError: If it is damaged or cannot be read safely.
        """
        header = self.header(name)
        info = self._archive.getinfo(name + ENDING)
        if info.compress_type != zipfile.ZIP_STORED or not header.size:
            return None
        if check:
            for _ in self._parts(name, header):
                pass
        # The lengths of the name and the extra field in the member's own header (which may differ
        # from the directory's) stand at its bytes 26 to 30, the content follows them.
        self._file.seek(info.header_offset + _LOCAL_LENGTHS)
        lengths = np.frombuffer(self._file.read(4), "<u2")
        offset = info.header_offset + _LOCAL_HEADER + int(lengths.sum()) + header.length
        return np.memmap(self._file, header.dtype, "r", offset, header.shape, header.order)

    def _parts(self, name: str, header: Header) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes of an array with their places; the last read compares the checksum."""
        with self._archive.open(name + ENDING) as member:
            member.read(header.length)
            start = 0
            while part := member.read(_PART):
                yield start, part
                start += len(part)
        if start != header.size:
            raise ValueError(f"the array {name} ends in the middle")


@contextmanager
def open_npz(path: str | os.PathLike) -> Iterator[ArrayArchive]:
    """Open an .npz for reading.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is damaged, or what is done with it meets damage; in one line.
    """
    with open_regular(path) as file:
        try:
            yield ArrayArchive(Path(path), file)
        except (OSError, MemoryError, ValueError):
            raise
        except Exception as error:  # zipfile and zlib have a kind for each damage
            reason = str(error) or type(error).__name__
            raise ValueError(reason.splitlines()[0]) from error


def load_npy(path: str | os.PathLike, *, mapped: bool = False) -> NDArray:
    """Return the array of an .npy, in memory or ``mapped`` from its place in the file.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it holds Python objects, or another number of bytes than it says.
    """
    with open_regular(path) as file:
        header = _read_header(file, Path(path).name)
        found = os.fstat(file.fileno()).st_size - header.length
        if found != header.size:
            raise ValueError(f"expected {header.size:,} bytes by its shape, got {found:,}")
        if mapped and header.size:
            return np.memmap(file, header.dtype, "r", header.length, header.shape, header.order)
        result = np.fromfile(file, header.dtype, math.prod(header.shape))
        return result.reshape(header.shape, order=header.order)


def _read_header(file: BinaryIO, name: str) -> Header:
    try:
        version = np.lib.format.read_magic(file)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise ValueError(f"format {version} of .npy is not read")
        shape, column_major, dtype = readers[version](file)
    except (OSError, ValueError, zipfile.BadZipFile):
        raise
    except Exception as error:  # a header is Python text, and may be nested or of any types
        raise ValueError(f"the header of {name} is damaged") from error
    if dtype.hasobject:
        raise ValueError(f"the array {name} holds Python objects, which are never loaded")
    whole = all(type(side) is int and side >= 0 for side in shape)  # True is an int too
    if not whole or (math.prod(shape) and not dtype.itemsize):
        raise ValueError(f"the array {name} has no such shape: {shape} of {dtype}")
    return Header(shape, dtype, "F" if column_major else "C", file.tell())
