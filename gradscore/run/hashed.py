"""The shards of a run, hashed before they are used.

A small file is read once into memory, and hashed and used there; a larger one is hashed and used
through one descriptor. While one is used the next ones are read and hashed, each in a thread:
hashing takes longer than all the rest of reading.
"""

import hashlib
import io
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import GradScoreError
from gradscore.run.files import DamagedFile, damage, open_below

IN_MEMORY = 16 << 20
"""Bytes up to which a file is held in memory as a whole: larger ones are no slower by parts."""
PART = 1 << 18
"""Bytes that are read and hashed in turn: a quarter of a core's own cache."""
AHEAD = 2
"""Most files that are hashed beside the one in use."""
LOOKED_AT = 1 << 20
"""Most bytes that are remembered of what HDF5 looked at: of a shard it is a hundredth of that."""


class HashedFile(io.RawIOBase):
    """The bytes of a file, as a file of their own.

    Args:
        descriptor: Of the file; it is closed with this one, or before.
        size: Number of bytes.

    Attributes:
        size: As given.
        sha256: Their SHA-256, once they were hashed.
        looked_at: Place and bytes of all that was read of it as of a file; None if that is much.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor: int | None = descriptor
        self.size, self.sha256 = size, ""
        self.looked_at: list[tuple[int, bytes]] | None = []
        self._place = self._remembered = 0

    def hash(self) -> None:
        """Read every byte."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, PART):
            digest.update(self._fetch(offset, min(PART, self.size - offset)))
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
        self._remember(part)
        self._place += len(part)
        return len(part)

    def close(self) -> None:
        """Let go of the file."""
        self._let_go()
        super().close()

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _remember(self, part: memoryview) -> None:
        self._remembered += len(part)
        if self._remembered > LOOKED_AT:
            self.looked_at = None
        if self.looked_at is not None:
            self.looked_at.append((self._place, bytes(part)))


class _InMemory(HashedFile):
    def __init__(self, descriptor: int, size: int, room: NDArray[np.uint8]) -> None:
        super().__init__(descriptor, size)
        self.room, self._content = room, memoryview(room)[:size]

    def hash(self) -> None:
        super().hash()
        self._let_go()

    def _fetch(self, offset: int, size: int) -> memoryview:
        # Hashed part by part, as long as each is in the processor's cache.
        room = part = self._content[offset : offset + size]
        while room:
            count = os.readv(self._descriptor, [room])
            if not count:
                raise OSError("it ends before its size")
            room = room[count:]
        return part

    def at(self, offset: int, size: int) -> memoryview:
        return self._content[offset : offset + size]


class _OnDisk(HashedFile):
    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(descriptor, size)
        self._state = _state(descriptor)
        self._part = memoryview(bytearray(min(PART, size)))

    def _fetch(self, offset: int, size: int) -> memoryview:
        # Into the same memory each time: pages that are given anew cost a tenth of the time.
        return self._part[: os.preadv(self._descriptor, [self._part[:size]], offset)]

    def at(self, offset: int, size: int) -> memoryview:
        size = max(0, min(size, self.size - offset))
        return memoryview(os.pread(self._descriptor, size, offset))

    def unchanged(self) -> bool:
        return _state(self._descriptor) == self._state


def _state(descriptor: int) -> tuple[int, int, int]:
    about = os.fstat(descriptor)
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


class HashedFiles:
    """Opens files of a run; the memory for those that are held is used again.

    Args:
        root: The run's directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rooms: list[NDArray[np.uint8]] = []
        self._threads = ThreadPoolExecutor(AHEAD, "gradscore-hash")
        self._coming: dict[str, Future[HashedFile]] = {}

    @contextmanager
    def open(self, file: str, sha256: str, following: Sequence[str] = ()) -> Iterator[HashedFile]:
        """Open a file whose SHA-256 is as recorded.

        Args:
            file: Its path below the run.
            sha256: What was recorded.
            following: Paths of the files that will be opened next, in turn; they are read and
                hashed meanwhile, and what is wrong with one is left for its own opening to say.

        Raises:
            DamagedFile: If it is missing or cannot be read, or its SHA-256 is another.
            RunError: If it may not be read.
        """
        content = self._ready(file, sha256)
        try:
            if content.sha256 != sha256:
                raise DamagedFile(
                    self.root / file, "is damaged: its SHA-256 is not the recorded one"
                )
            for name in following[:AHEAD]:
                if name not in self._coming:
                    with suppress(RuntimeError):  # no thread can be started
                        self._coming[name] = self._threads.submit(self._read, name)
            yield content
        finally:
            self._release(content)

    def close(self) -> None:
        """End the threads, and let go of what was hashed for nothing."""
        self._threads.shutdown(cancel_futures=True)
        for coming in self._coming.values():
            if not coming.cancelled() and coming.exception() is None:
                self._release(coming.result())
        self._coming.clear()

    def _ready(self, file: str, sha256: str) -> HashedFile:
        """Return a file that was read ahead, or is read now."""
        coming = self._coming.pop(file, None)
        if coming is not None:
            # What was wrong with it may have been repaired since.
            with suppress(GradScoreError):
                content = coming.result()
                if content.sha256 == sha256 and content.unchanged():
                    return content
                self._release(content)
        return self._read(file)

    def _read(self, file: str) -> HashedFile:
        descriptor = open_below(self.root, file)
        size = os.fstat(descriptor).st_size
        large = size > IN_MEMORY
        content = (_OnDisk if large else self._held)(descriptor, size)
        try:
            with damage(self.root / file):
                content.hash()
        except BaseException:
            self._release(content)
            raise
        return content

    def _held(self, descriptor: int, size: int) -> _InMemory:
        room = np.empty(0, np.uint8)
        with suppress(IndexError):
            room = self._rooms.pop()
        return _InMemory(descriptor, size, room if len(room) >= size else np.empty(size, np.uint8))

    def _release(self, content: HashedFile) -> None:
        if isinstance(content, _InMemory):
            self._rooms.append(content.room)
        content.close()
