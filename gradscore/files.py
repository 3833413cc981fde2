"""Files of others are opened only where they are regular; results are written aside and renamed.

To open a FIFO, a socket or a device can wait for ever, never end, or do something to the machine.
"""

import contextlib
import errno
import fcntl
import glob
import io
import itertools
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from gradscore.errors import GradScoreError, RunError, near_name

FEW_BYTES, BYTES_A_BYTE = 1 << 28, 100
"""What is compressed may unfold to the larger of so much, and so many times its size."""
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the machine lacks says nothing about a file."""
MOST_BESIDE = 1000
"""Names that a mistyped one is compared with."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
LOCKED: set[int] = set()
"""Descriptors of files that this process holds a lock of."""
_OF_A_RUN = ("run.json", "head.safetensors", ".lock", ".journal")
"""What lies in a run's directory beside the folders of its sets and fits."""
_RUN_DEPTH = 3
"""How many folders up from its files a run's directory may be."""
_CHECKSUM = b'"checksum": "'
_NAME_SHOWN = 50
"""Characters of a file's name in the name beside it, which has to stay below 256 bytes."""


def _close_in_child() -> None:
    """Drop a forked worker's copies of the locks, or it could outlive its parent holding them."""
    for descriptor in LOCKED:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    LOCKED.clear()


os.register_at_fork(after_in_child=_close_in_child)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: If it cannot be opened, or is something else, which ``strerror`` then names.
    """
    _require_regular(os.stat(path), path)  # to open a device may already do something
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        _require_regular(os.fstat(descriptor), path)  # it may have been exchanged since
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike, limit: int) -> bytes:
    """Return the bytes of a regular file of at most ``limit``.

    Raises:
        OSError: If it cannot be read, is no regular file or is larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            reason = f"expected at most {limit:,} bytes, got {size:,}"
            raise OSError(errno.EFBIG, reason, os.fspath(path))
        return file.read(size)


def near_path(path: str | os.PathLike) -> str:
    """Return a sentence with the path that an absent one may stand for, or an empty text.

    Its first part that is not there is compared with the first names beside it.
    """
    absent = Path(path)
    while absent != absent.parent and not os.path.isdir(absent.parent):
        absent = absent.parent
    try:
        with os.scandir(absent.parent) as entries:
            beside = [entry.name for entry in itertools.islice(entries, MOST_BESIDE)]
    except (OSError, ValueError):  # no path holds a NUL
        return ""
    return near_name(absent.name, sorted({*beside} - {absent.name}), absent.parent)


def most_unfolded(size: int) -> int:
    """Return the most bytes that ``size`` compressed ones may unfold to."""
    return max(FEW_BYTES, BYTES_A_BYTE * size)


@contextmanager
def as_text(file: BinaryIO, encoding: str = "utf-8", errors: str = "strict") -> Iterator[TextIO]:
    """Yield what reads or writes ``file`` as text, line ends as they are; it stays open."""
    text = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")
    try:
        yield text
        text.flush()
    finally:
        with contextlib.suppress(OSError, ValueError):  # the file may be closed, or the disk full
            text.detach()


def require_replaceable(path: str | os.PathLike) -> None:
    """Raise where a result could not take the place of ``path``; nothing is written.

    Raises:
        OSError: If its folder is absent or may not be written, it is a folder, device or FIFO, or
            the place of a run's own file.
    """
    path = Path(path)
    if not path.parent.is_dir():
        code = errno.ENOTDIR if path.parent.exists() else errno.ENOENT
        raise OSError(code, os.strerror(code), os.fspath(path))
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
    try:
        with contextlib.suppress(FileNotFoundError):
            _require_regular(os.stat(path), path)
    except ValueError as error:  # no path can hold a NUL
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from None
    _require_outside_runs(path)


@contextmanager
def written_aside(
    path: str | os.PathLike, kind: type[GradScoreError] = RunError
) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of ``path`` once it is whole; else nothing changes.

    What a killed command left beside ``path`` is removed.

    Args:
        path: Where to.
        kind: What is raised where it cannot be written.

    Raises:
        GradScoreError: Of ``kind``, in place of an OSError.
    """
    final = Path(path)
    part = None
    try:
        require_replaceable(final)
        _clear_stale(final)
        part, file = _beside(final)
        with file, _dropped_in_forks(file.fileno()):
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, final)
    except OSError as error:
        raise kind(f"Cannot write {final}: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):  # renamed, or the system became read-only
            if part is not None:
                part.unlink(missing_ok=True)


@contextmanager
def _dropped_in_forks(descriptor: int) -> Iterator[None]:
    """Let forked workers drop a locked file, until just before it is closed here."""
    LOCKED.add(descriptor)
    try:
        yield
    finally:
        LOCKED.discard(descriptor)


def _require_regular(found: os.stat_result, path: str | os.PathLike) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"expected a regular file, got {what}", os.fspath(path))


def _require_outside_runs(path: Path) -> None:
    """Raise where a result would take the place of a run's file, or lie among those of a set."""
    final = path.parent.resolve() / path.name
    for folder in final.parents[:_RUN_DEPTH]:
        own = folder != final.parent or final.name.lower() in _OF_A_RUN
        if own and _is_run(folder):
            raise OSError(
                errno.EEXIST, f"it would be among the files of the run {folder}", str(path)
            )


def _is_run(folder: Path) -> bool:
    with contextlib.suppress(OSError), open_regular(folder / _OF_A_RUN[0]) as file:
        file.seek(-min(100, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return _CHECKSUM in file.read()
    return False


def _beside(final: Path) -> tuple[Path, BinaryIO]:
    """Return a new file beside ``final``, locked for as long as its writer lives."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        part = final.with_name(f".{final.name[:_NAME_SHOWN]}.{secrets.token_hex(4)}.part")
        file = os.fdopen(os.open(part, flags, 0o666), "w+b")
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        # Before it was locked, another command may have taken it for stale.
        if os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()


def _clear_stale(final: Path) -> None:
    """Remove what commands that are dead left beside ``final``: nobody holds its lock."""
    pattern = f".{glob.escape(final.name[:_NAME_SHOWN])}.*.part"
    for part in final.parent.glob(pattern):
        with contextlib.suppress(OSError), open_regular(part) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()
