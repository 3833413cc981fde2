"""Files below a run's directory: opened part by part, links not followed, only regular files.

A run may come from someone else. Whatever its directory holds, nothing outside of it is opened.
"""

import errno
import os
import stat
from pathlib import Path

from gradscore.run.files import DamagedFile, may_not_read

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
        return DamagedFile(place, "is missing")
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
