"""The files of a run: regular files below its directory, hashed before they are used.

A run may come from someone else. Whatever its directory holds, nothing outside of it is opened:
paths are opened part by part, and links are not followed. A small file is read once into memory,
and hashed and used there; a larger one is hashed and used through one descriptor.
"""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gradscore.errors import GradScoreError, RunError, reason_of


class DamagedFile(RunError):
    """A file of a run is missing or damaged.

    Attributes:
        path: The file, or the folder of a pass.
        fault: What is wrong with it.
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path} {fault}")
        self.path, self.fault = path, fault


class Vanished(DamagedFile):
    """A file of a run is missing."""


def may_not_read(path: Path, error: OSError) -> RunError:
    """Return the error about a file that the system does not let us read; it may well be sound."""
    return RunError(f"Cannot read {path}: {error.strerror}.")


def cannot_write(path: Path, error: OSError) -> RunError:
    """Return the one-line error for what the system refused."""
    reason = error.strerror or str(error)
    return RunError(
        f"Cannot write {path}: {reason}. What was finished is kept; the same command resumes."
    )


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Tell whatever a library says about the content of a file as damage of the file.

    Raises:
        DamagedFile: In place of any other error.
        RunError: If the file may not be read.
    """
    try:
        yield
    except (GradScoreError, MemoryError):
        raise
    except PermissionError as error:
        raise may_not_read(path, error) from error
    except Exception as error:  # each library has kinds of its own
        raise DamagedFile(path, f"is damaged: {reason_of(error)}") from error


FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Without ``O_NONBLOCK`` a FIFO would keep its reader waiting for a writer."""
NO_FAULT = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What keeps a sound file from being read."""


def open_below(root: Path, file: str) -> int:
    """Return a descriptor of a regular file below a run's directory.

    The directory itself may be a link; what is below it may not.

    Args:
        root: The run's directory.
        file: The file's path below it, parts joined by ``/``.

    Raises:
        DamagedFile: If it is missing, no regular file, or a link stands in its path.
        RunError: If it may not be read.
    """
    *folders, _ = parts = file.split("/")
    place, descriptor = root, None
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for depth, part in enumerate(parts):
            place = root.joinpath(*parts[: depth + 1])
            how = FOLDER if depth < len(folders) else FILE
            inner = os.open(part, how, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamagedFile(place, "is no regular file")
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise _fault(place, error) from error
    except DamagedFile:
        os.close(descriptor)
        raise
    return descriptor


def _fault(place: Path, error: OSError) -> Exception:
    if error.errno in NO_FAULT:
        return may_not_read(place, error)
    if place.is_symlink():
        return DamagedFile(place, "is a link, which is not followed")
    if error.errno == errno.ENOENT:
        return Vanished(place, "is missing")
    return DamagedFile(place, f"cannot be read: {error.strerror}")


def read_below(root: Path, file: str, most: int) -> bytes:
    """Return the content of a file below a run's directory.

    Args:
        root: The run's directory.
        file: The file's path below it.
        most: Bytes that it may have.

    Raises:
        DamagedFile: As :func:`open_below`, or if it is larger.
        RunError: If it may not be read.
    """
    descriptor = open_below(root, file)
    with open(descriptor, "rb") as opened:
        size = os.fstat(descriptor).st_size
        if size > most:
            raise DamagedFile(
                root / file, f"is damaged: expected at most {most:,} bytes, got {size:,}"
            )
        try:
            return opened.read(size)
        except OSError as error:
            raise _fault(root / file, error) from error


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
        self._room = np.empty(0, np.uint8)

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
        descriptor = open_below(self.root, file)
        with open(descriptor, "rb", buffering=0) as opened:
            with damage(path):
                content = self._content(opened, descriptor)
                if content.sha256 != sha256:
                    raise DamagedFile(path, "is damaged: its SHA-256 is not the recorded one")
            yield content

    def _content(self, opened: io.RawIOBase, descriptor: int) -> HashedFile:
        size = os.fstat(descriptor).st_size
        if size > IN_MEMORY:
            return _OnDisk(descriptor, size)
        if len(self._room) < size:
            self._room = np.empty(size, np.uint8)
        return _InMemory(opened, memoryview(self._room)[:size])
