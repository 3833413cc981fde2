"""The shards of a run, hashed before they are used.

A small file is read once into memory, and hashed and used there; a larger one is hashed and used
through one descriptor. While one is used the next may be read and hashed, since hashing takes as
long as all the rest of reading.
"""

import hashlib
import io
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import numpy as np

from gradscore.run.files import DamagedFile, damage, open_below

IN_MEMORY = 64 << 20
"""Bytes up to which a file is held in memory as a whole."""
PART = 1 << 20


class HashedFile(io.RawIOBase):
    """The bytes of a file, as a file of their own.

    Attributes:
        size: Their number.
        sha256: Their SHA-256.
    """

    def __init__(self, size: int) -> None:
        self.size, self._place = size, 0
        digest = hashlib.sha256()
        for offset in range(0, size, PART):
            digest.update(self._fetch(offset, min(PART, size - offset)))
        self.sha256 = digest.hexdigest()

    def _fetch(self, offset: int, size: int) -> memoryview:
        """Return the bytes from ``offset`` on for the first time."""
        return self.at(offset, size)

    @abstractmethod
    def at(self, offset: int, size: int) -> memoryview:
        """Return the bytes from ``offset`` on, fewer where the file ends."""

    def unchanged(self) -> bool:
        """Return whether they are still those that were hashed."""
        return True

    def readable(self) -> bool:
        """Say so to HDF5."""
        return True

    def seekable(self) -> bool:
        """Say so to HDF5."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        self._place = start + offset
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def readinto(self, buffer: memoryview) -> int:
        """Copy what comes next."""
        part = self.at(self._place, len(buffer))
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)


class _InMemory(HashedFile):
    def __init__(self, file: io.RawIOBase, room: memoryview) -> None:
        self._file, self._content = file, room
        super().__init__(len(room))

    def _fetch(self, offset: int, size: int) -> memoryview:
        # Hashed part by part, as long as each is in the processor's cache.
        room = part = self._content[offset : offset + size]
        while room:
            count = self._file.readinto(room)
            if not count:
                raise OSError("it ends before its size")
            room = room[count:]
        return part

    def at(self, offset: int, size: int) -> memoryview:
        return self._content[offset : offset + size]


class _OnDisk(HashedFile):
    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._state = descriptor, _state(descriptor)
        super().__init__(size)

    def at(self, offset: int, size: int) -> memoryview:
        size = max(0, min(size, self.size - offset))
        return memoryview(os.pread(self._descriptor, size, offset))

    def unchanged(self) -> bool:
        return _state(self._descriptor) == self._state


def _state(descriptor: int) -> tuple[int, int, int]:
    about = os.fstat(descriptor)
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


class HashedFiles:
    """Opens files of a run, one at a time; the memory for those that are held is used again.

    Args:
        root: The run's directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rooms = [np.empty(0, np.uint8), np.empty(0, np.uint8)]
        self._ahead: tuple[str, Thread, list[HashedFile]] | None = None

    def prepare(self, file: str) -> None:
        """Read and hash the file that is opened next, in a thread, if it is held in memory.

        Args:
            file: Its path below the run; what is wrong with it is left for :meth:`open` to say.
        """
        found: list[HashedFile] = []

        def read() -> None:
            with (
                suppress(Exception),
                open(open_below(self.root, file), "rb", buffering=0) as opened,
            ):
                if os.fstat(opened.fileno()).st_size <= IN_MEMORY:
                    found.append(self._content(opened, opened.fileno(), room=1))

        thread = Thread(target=read, name="gradscore-hash", daemon=True)
        self._ahead = file, thread, found
        thread.start()

    def _prepared(self, file: str) -> HashedFile | None:
        if self._ahead is None:
            return None
        (expected, thread, found), self._ahead = self._ahead, None
        thread.join()
        if expected != file or not found:
            return None
        self._rooms.reverse()
        return found[0]

    @contextmanager
    def open(self, file: str, sha256: str) -> Iterator[HashedFile]:
        """Open a file whose SHA-256 is as recorded.

        Args:
            file: Its path below the run.
            sha256: What was recorded.

        Raises:
            DamagedFile: If it is missing or cannot be read, or its SHA-256 is another.
            RunError: If it may not be read.
        """
        path = self.root / file
        prepared = self._prepared(file)
        descriptor = open_below(self.root, file)
        with open(descriptor, "rb", buffering=0) as opened:
            with damage(path):
                content = prepared or self._content(opened, descriptor)
                if content.sha256 != sha256:
                    raise DamagedFile(path, "is damaged: its SHA-256 is not the recorded one")
            yield content

    def _content(self, opened: io.RawIOBase, descriptor: int, room: int = 0) -> HashedFile:
        size = os.fstat(descriptor).st_size
        if size > IN_MEMORY:
            return _OnDisk(descriptor, size)
        if len(self._rooms[room]) < size:
            self._rooms[room] = np.empty(size, np.uint8)
        return _InMemory(opened, memoryview(self._rooms[room])[:size])
