"""What can be wrong with the files of a run, in one line each."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradscore.errors import GradScoreError, RunError


class DamagedFile(RunError):
    """A file of a run is missing or damaged.

    Attributes:
        path: The file, or the folder of a pass.
        fault: What is wrong with it.
    """

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(f"{path} {fault}")
        self.path, self.fault = path, fault


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFile(path, f"is damaged: {reason}") from error
