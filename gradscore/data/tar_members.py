"""The members of a .tar whose headers can be believed; links and devices are left out."""

import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from gradscore.files import most_unfolded

HEADER_BYTES = 1 << 18
"""Long names and further fields of a member are read at once, and may be so much."""
PIECE_BYTES = 1 << 20
HEADER = tarfile.BLOCKSIZE
"""Bytes of a member's own header, which stands before its content."""
SHORT = 90
"""Characters of a name that every kind of header has room for."""
_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class Header(tarfile.TarInfo):
    """A header that is refused before what it announces is read."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        """Return the header in a block.

        Raises:
            ValueError: If more than :data:`HEADER_BYTES` of names or fields are to follow, or
                the member is stored with holes.
        """
        header = super().frombuf(buf, encoding, errors)
        if header.type == tarfile.GNUTYPE_SPARSE:
            _refuse_holes(header)
        if header.type in _EXTENDED and not 0 <= header.size <= HEADER_BYTES:
            raise ValueError(
                f"expected a header of at most {HEADER_BYTES:,} bytes, got {header.size:,}"
            )
        return header

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Return the next header; tarfile alone takes a damaged or missing one for the end.

        Raises:
            ValueError: If neither a member nor the end mark follows.
        """
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            if archive.offset == 0:  # another kind of packing is tried
                raise
            raise ValueError(
                "it is incomplete or damaged: neither a member nor the end mark stands at byte "
                f"{archive.offset:,}; copy it again"
            ) from error

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        """Refuse digits without end, which tarfile before 2024 searches in quadratic time."""
        fields = archive.fileobj.read(self._block(self.size))
        if re.search(rb"\d{100}", fields):
            raise ValueError("a header holds a number of more than 100 digits")
        archive.fileobj = _Ahead(archive, fields)
        return super()._proc_pax(archive)

    def _proc_gnusparse_10(self, following: tarfile.TarInfo, *rest: object) -> None:
        """Refuse a map of holes that stands in front of the data, of any length."""
        _refuse_holes(following)


class _Ahead:
    """Gives what was read ahead of an archive's file, once, and then stands back for the file."""

    def __init__(self, archive: tarfile.TarFile, content: bytes) -> None:
        self._archive, self._file, self._content = archive, archive.fileobj, content

    def read(self, size: int) -> bytes:
        """Return what was read ahead."""
        self._archive.fileobj = self._file
        return self._content


def open_archive(path: Path) -> closing[tarfile.TarFile]:
    """Open an archive of any packing for :func:`sound_members`.

    Raises:
        Exception: If it is no archive or damaged; each kind of packing has its own.
    """
    return closing(tarfile.open(path, "r:*", tarinfo=Header))


def sound_members(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of an archive, in its order.

    Args:
        archive: Open for reading.
        path: The archive itself.

    Raises:
        ValueError: If a member is of impossible size, would lie outside of the archive, or is
            stored with holes, so that its bytes are not in one place; or if no end mark follows
            the last one.
        EOFError: If what it is packed in is cut short.
        tarfile.TarError: If the archive is damaged.
    """
    size = os.path.getsize(path)
    plain = type(archive.fileobj).__name__ in ("BufferedReader", "ExFileObject")
    end = size if plain else most_unfolded(size)
    while (member := _next(archive)) is not None:
        archive.members.clear()  # which tarfile keeps: of a million, a gigabyte
        if member.size < 0 or member.offset_data + member.size > end:
            raise ValueError(
                f"member {member.name!r} of {member.size:,} bytes does not fit into the archive's "
                f"{end:,}"
            )
        if archive.offset <= member.offset:
            raise ValueError(f"the archive turns back at member {member.name!r}")
        if not member.isfile():
            continue
        if member.issparse():
            _refuse_holes(member)
        yield member
    if not plain:
        _read_to_the_end(archive, end)


def is_header_of(block: bytes, name: str, size: int) -> bool:
    """Return whether a block is the header of a member of this name and size.

    A long name, or one of more than ASCII, stands in other blocks; its size is compared alone.
    """
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    plain = name.isascii() and len(name) <= SHORT
    same = header.name.removeprefix("./") == name or not plain
    return header.isfile() and header.size == size and same


def _refuse_holes(member: tarfile.TarInfo) -> None:
    raise ValueError(
        f"member {member.name!r} is stored with holes; pack the archive anew, no file as sparse"
    )


def _read_to_the_end(archive: tarfile.TarFile, end: int) -> None:
    """Read what follows the end mark: the checksum of a packing is compared behind it."""
    while archive.fileobj.read(PIECE_BYTES):
        if archive.fileobj.tell() > end:
            raise ValueError(f"expected it to unfold to at most {end:,} bytes")


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return archive.next()
    except (OSError, tarfile.TarError, ValueError):
        raise
    except Exception as error:  # a hostile header is nested, asks for memory, or is of any type
        raise ValueError(f"damaged header: {error or type(error).__name__}") from error
