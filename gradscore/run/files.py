"""The files of a run: regular files below its directory.

A run may come from someone else. Whatever its directory holds, nothing outside of it is opened:
paths are opened part by part, and links are not followed.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
