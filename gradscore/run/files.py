"""Files that are whole or absent, and the lock that keeps a second writer out."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import RunError
from gradscore.run.names import LOCK_FILE

_held: set[int] = set()


class DamagedFile(RunError):
    """A file of a run is missing or damaged.

    Attributes:
        path: The file, or the folder of a pass.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}")
        self.path = path


def _close_in_child() -> None:
    """Drop a forked worker's copies of the locks, or it could outlive its parent holding them."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def write_whole(path: Path, content: bytes) -> None:
    """Write ``path`` so that after a crash at any moment it is whole, old or absent.

    Raises:
        RunError: If the disk is full, the directory cannot be written, and the like; nothing that
            was finished before is touched.
    """
    aside = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def write_arrays(path: Path, arrays: Mapping[str, NDArray]) -> str:
    """Write named arrays (safetensors) and return the file's SHA-256; equal ones give equal bytes.

    Raises:
        RunError: If the file cannot be written.
    """
    from safetensors.numpy import save

    content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    write_whole(path, content)
    return hashlib.sha256(content).hexdigest()


def read_arrays(path: Path, sha256: str) -> dict[str, NDArray]:
    """Return the named arrays of a file.

    Raises:
        DamagedFile: If it cannot be read, or its SHA-256 is another.
        RunError: If it may not be read.
    """
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
    except PermissionError as error:
        raise may_not_read(path) from error
    except OSError as error:
        raise DamagedFile(path, f"cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedFile(path, "is damaged: its SHA-256 is not the recorded one")
    return load(content)


def may_not_read(path: Path) -> RunError:
    """Return the error about a file of others, which may well be sound."""
    return RunError(f"Cannot read {path}: Permission denied.")


def sync_directory(path: Path) -> None:
    """Make the names in a directory last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> RunError:
    """Return the one-line error for what the system refused."""
    reason = error.strerror or str(error)
    return RunError(
        f"Cannot write {path}: {reason}. What was finished is kept; the same command resumes."
    )


class WriterLock:
    """An exclusive lock on a run's directory, held by one process until released or dead."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK_FILE
        if directory.exists() and not directory.is_dir():
            raise RunError(f"Expected a directory for the run, got the file {directory}.")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(self._descriptor, 20).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise RunError(
                f"The run {directory} is being written by another process (pid {pid}); "
                "wait for it to end, or choose another directory."
            ) from None
        _held.add(self._descriptor)
        with contextlib.suppress(OSError):  # a full disk must not keep the lock from being held
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others write; more than once does no harm."""
        if self._descriptor in _held:
            _held.discard(self._descriptor)
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            # Closing alone would leave it to a child that was forked a moment ago.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
