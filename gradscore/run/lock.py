"""The lock on a run's directory: one process at a time writes it."""

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

from gradscore.errors import RunError
from gradscore.files import LOCKED
from gradscore.run.files import cannot_write
from gradscore.run.names import LOCK_FILE


class RunInUse(RunError):
    """Another process writes the run."""


class Lock:
    """An exclusive lock on a run's directory, held by one process until released or dead.

    Args:
        directory: The run's directory, made if it is not there.

    Attributes:
        root: Descriptor of the directory that was locked.

    Raises:
        RunInUse: If another process writes the run.
        RunError: If it is no directory, or cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        if directory.exists() and not directory.is_dir():
            raise RunError(f"Expected a directory for the run, got the file {directory}.")
        if "\0" in str(directory):
            raise RunError(
                f"Expected a directory for the run without NUL, got {str(directory)!r}."
            )
        lock = directory / LOCK_FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise cannot_write(lock, error) from error
        try:
            self._file = _open_lock(self.root, lock)
        except BaseException:
            os.close(self.root)
            raise
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(self._file, 20).decode(errors="replace").strip()
            os.close(self._file)
            os.close(self.root)
            raise _not_locked(directory, pid, error) from None
        LOCKED.update((self._file, self.root))
        with contextlib.suppress(OSError):  # a full disk must not keep the lock from being held
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others write; more than once does no harm."""
        if self._file in LOCKED:
            LOCKED.difference_update((self._file, self.root))
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
            # Closing alone would leave it to a child that was forked a moment ago.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)
            os.close(self.root)


def _not_locked(directory: Path, pid: str, error: OSError) -> RunError:
    """Return why a lock was not had: another holds it, or the disk has none to give."""
    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
        return RunError(
            f"The disk of {directory} gives no locks ({error.strerror}), so that two processes "
            "might write one run; choose a directory on another disk."
        )
    who = f"another process (pid {pid})" if pid else "another process"
    return RunInUse(
        f"The run {directory} is being written by {who}; wait for it to end, or choose another "
        "directory."
    )


def _open_lock(root: int, path: Path) -> int:
    """Open the lock's file, which must be the run's own: its content is replaced."""
    how = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(LOCK_FILE, how, 0o644, dir_fd=root)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunError(
                f"Expected the run's own lock, got the link {path}; delete it."
            ) from None
        raise cannot_write(path, error) from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
        os.close(descriptor)
        raise RunError(
            f"Expected the run's own lock, got {path}, which is no file of its own; delete it."
        )
    return descriptor
