"""The one process that writes a run: its lock, and files that are whole or absent.

All is opened from the directory that was locked, part by part and without following links, so that
nothing outside of it is written, whatever the run holds and wherever it is moved meanwhile.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import RunError
from gradscore.run.files import FOLDER, cannot_write
from gradscore.run.names import LOCK_FILE

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
"""What a disk without hard links says."""
_held: set[int] = set()


def _close_in_child() -> None:
    """Drop a forked worker's copies of the locks, or it could outlive its parent holding them."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class RunInUse(RunError):
    """Another process writes the run."""


class Writer:
    """An exclusive lock on a run's directory, held by one process until released or dead.

    Args:
        directory: The run's directory, made if it is not there.

    Raises:
        RunError: If it is no directory, cannot be written, or another process writes it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if directory.exists() and not directory.is_dir():
            raise RunError(f"Expected a directory for the run, got the file {directory}.")
        if "\0" in str(directory):
            raise RunError(
                f"Expected a directory for the run without NUL, got {str(directory)!r}."
            )
        lock = directory / LOCK_FILE
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise cannot_write(lock, error) from error
        try:
            self._lock = _open_lock(self._root, lock)
        except BaseException:
            os.close(self._root)
            raise
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.read(self._lock, 20).decode(errors="replace").strip()
            os.close(self._lock)
            os.close(self._root)
            raise _not_locked(directory, pid, error) from None
        _held.update((self._lock, self._root))
        with contextlib.suppress(OSError):  # a full disk must not keep the lock from being held
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def write(self, file: str, content: bytes) -> None:
        """Write a file so that after a crash at any moment it is whole, old or absent.

        Args:
            file: Its path below the run, parts joined by ``/``.
            content: Its bytes.

        Raises:
            RunError: If the disk is full, the directory cannot be written, a link stands in the
                way, or the run is no longer where it was; nothing that was finished is touched.
        """
        self.require_in_place()
        *folders, name = file.split("/")
        part = f"{name}.part"
        try:
            with self._folder(folders) as folder:
                try:
                    _write_new(folder, part, content)
                    os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(part, dir_fd=folder)
                    raise
                os.fsync(folder)
        except OSError as error:
            raise cannot_write(self.directory / file, error) from error

    def link(self, source: str, target: str) -> None:
        """Give a file of the run another name as well, in place of what has that name.

        Where the disk has no hard links the file is renamed. What was linked before is left.

        Args:
            source: Its path below the run.
            target: The other; what stands there is replaced.

        Raises:
            RunError: If the disk refuses, or a link stands in the way.
        """
        (*folders, name), (*into, new) = source.split("/"), target.split("/")
        part = f"{new}.part"
        try:
            with self._folder(folders, make=False) as here, self._folder(into) as there:
                if not _is_regular(name, here):
                    if _is_regular(new, there):  # renamed before a merge was killed
                        return
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                if _is_same(name, here, new, there):
                    return
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=there)
                try:
                    os.link(name, part, src_dir_fd=here, dst_dir_fd=there, follow_symlinks=False)
                except OSError as error:
                    if error.errno not in NO_LINKS:
                        raise
                    os.rename(name, new, src_dir_fd=here, dst_dir_fd=there)
                else:
                    os.replace(part, new, src_dir_fd=there, dst_dir_fd=there)
                os.fsync(there)
        except OSError as error:
            raise cannot_write(self.directory / target, error) from error

    def delete(self, file: str) -> None:
        """Delete a file of the run, and the folders that are empty then; an absent one is none.

        Args:
            file: Its path below the run, parts joined by ``/``.
        """
        *folders, name = file.split("/")
        with contextlib.suppress(OSError), self._folder(folders) as folder:
            os.unlink(name, dir_fd=folder)
        for depth in range(len(folders), 0, -1):
            with contextlib.suppress(OSError), self._folder(folders[: depth - 1]) as folder:
                os.rmdir(folders[depth - 1], dir_fd=folder)

    def write_arrays(self, file: str, arrays: Mapping[str, NDArray]) -> str:
        """Write named arrays (safetensors); equal ones give equal bytes.

        Returns:
            The file's SHA-256.

        Raises:
            RunError: If the file cannot be written.
        """
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        self.write(file, content)
        return hashlib.sha256(content).hexdigest()

    def require_in_place(self) -> None:
        """Raise where the path of the run no longer leads to the directory that was opened.

        Raises:
            RunError: If it was moved, removed or replaced.
        """
        try:
            there = os.path.samestat(os.stat(self.directory), os.fstat(self._root))
        except OSError:
            there = False
        if not there:
            raise RunError(
                f"The run {self.directory} was moved or removed while it was written; what was "
                "finished is where it was moved to: give that as the run, and the same command "
                "resumes."
            )

    def release(self) -> None:
        """Let others write; more than once does no harm."""
        if self._lock in _held:
            _held.difference_update((self._lock, self._root))
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock, 0)
            # Closing alone would leave it to a child that was forked a moment ago.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            os.close(self._root)

    @contextmanager
    def _folder(self, parts: list[str], *, make: bool = True) -> Iterator[int]:
        """Open a folder below the run, made where it is absent; its name lasts once it is."""
        descriptor = os.dup(self._root)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=descriptor)
                        os.fsync(descriptor)
                inner = os.open(part, FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)


def _is_regular(name: str, folder: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _is_same(name: str, folder: int, other: str, there: int) -> bool:
    """Return whether two names are those of one file; to rename one to the other does nothing."""
    try:
        ours = os.stat(name, dir_fd=folder, follow_symlinks=False)
        return os.path.samestat(ours, os.stat(other, dir_fd=there, follow_symlinks=False))
    except FileNotFoundError:
        return False


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


def _write_new(folder: int, name: str, content: bytes) -> None:
    """Write a file that is not there yet; what a kill left under its name is removed first."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, how, 0o666, dir_fd=folder), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
