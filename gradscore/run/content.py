"""The bytes of a shard, hashed before anything else is done with them.

Those of a small file are read once into memory, and hashed and used there; those of a larger one
are hashed and used through one descriptor.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gradscore.run.below import open_below
from gradscore.run.files import DamagedFile, damage

IN_MEMORY = 64 << 20
"""Bytes up to which a file is held in memory as a whole."""
PART = 1 << 20


class Content(io.RawIOBase):
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

    def at(self, offset: int, size: int) -> memoryview:
        """Return the bytes from ``offset`` on, fewer where the file ends."""
        raise NotImplementedError

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


class _InMemory(Content):
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


class _OnDisk(Content):
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
        self._room = np.empty(0, np.uint8)

    @contextmanager
    def open(self, file: str, sha256: str) -> Iterator[Content]:
        """Open a file whose SHA-256 is as recorded.

        Args:
            file: Its path below the run.
            sha256: What was recorded.

        Raises:
            DamagedFile: If it is missing or cannot be read, or its SHA-256 is another.
            RunError: If it may not be read.
        """
        path = self.root / file
        descriptor = open_below(self.root, file)
        with open(descriptor, "rb", buffering=0) as opened:
            with damage(path):
                content = self._content(opened, descriptor)
                if content.sha256 != sha256:
                    raise DamagedFile(path, "is damaged: its SHA-256 is not the recorded one")
            yield content

    def _content(self, opened: io.RawIOBase, descriptor: int) -> Content:
        size = os.fstat(descriptor).st_size
        if size > IN_MEMORY:
            return _OnDisk(descriptor, size)
        if len(self._room) < size:
            self._room = np.empty(size, np.uint8)
        return _InMemory(opened, memoryview(self._room)[:size])
