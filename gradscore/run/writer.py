"""The one process that writes a run: its lock, and files that are whole or absent.

All is opened from the directory that was locked, part by part and without following links, so that
nothing outside of it is written, whatever the run holds and wherever it is moved meanwhile.
"""

import contextlib
import errno
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
from gradscore.run.lock import Lock

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
"""What a disk without hard links says."""


class Writer:
    """An exclusive lock on a run's directory, held by one process until released or dead.

    Args:
        directory: The run's directory, made if it is not there.

    Raises:
        RunError: If it is no directory, cannot be written, or another process writes it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = Lock(directory)
        self._root = self._lock.root

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
                    write_new(part, content, folder)
                    os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
                except OSError:
                    with contextlib.suppress(OSError):
                        os.unlink(part, dir_fd=folder)
                    raise
                os.fsync(folder)
        except OSError as error:
            raise cannot_write(self.directory / file, error) from error

    def append(self, file: str, content: bytes, *, new: bool = False) -> None:
        """Add bytes to a file of the run's directory itself.

        What could not be added whole is taken off again, where the disk lets it.

        Args:
            file: Its name.
            content: The bytes.
            new: Whether they begin it: what has its name is removed first.

        Raises:
            RunError: As :meth:`write` does.
        """
        self.require_in_place()
        how = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        how |= os.O_CREAT | os.O_EXCL if new else 0
        try:
            if new:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file, dir_fd=self._root)
            with open(os.open(file, how, 0o666, dir_fd=self._root), "ab", buffering=0) as opened:
                before = os.fstat(opened.fileno()).st_size
                try:
                    left = memoryview(content)
                    while left:
                        left = left[opened.write(left) :]
                    os.fsync(opened.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(opened.fileno(), before)
                    raise
            if new:
                os.fsync(self._root)
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

    def delete(self, file: str, *, folders_too: bool = True) -> None:
        """Delete a file of the run; an absent one is none.

        Args:
            file: Its path below the run, parts joined by ``/``.
            folders_too: Whether folders that are empty then are deleted, too.
        """
        *folders, name = file.split("/")
        with contextlib.suppress(OSError), self._folder(folders) as folder:
            os.unlink(name, dir_fd=folder)
        for depth in range(len(folders) if folders_too else 0, 0, -1):
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
        self._lock.release()

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


def write_new(name: str | Path, content: bytes, folder: int | None = None) -> None:
    """Write a file that is not there yet; what a kill left under its name is removed first.

    Args:
        name: Its name, or its path.
        content: Its bytes.
        folder: Descriptor of the folder that a name is in.

    Raises:
        OSError: If it cannot be written.
    """
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    how = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, how, 0o666, dir_fd=folder), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
