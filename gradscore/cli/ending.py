"""How a command ends where it cannot go on: one line on stderr, and an exit code."""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from gradscore.cli.console import as_options
from gradscore.errors import GradScoreError
from gradscore.escapes import message

INTERRUPTED = "Interrupted. What was finished is kept; the same command resumes."
"""What is told unless the interrupt says otherwise as its ``told``."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""Besides the SIGINT of Ctrl-C."""
LACKING = {
    "memory": (
        ("memory", "failed to map segment"),
        "choose a smaller --batch-size or fewer --workers, or raise the limit (ulimit -v)",
    ),
    "open files": (
        ("Too many open files", "received 0 items of ancdata"),
        "choose fewer --workers, or raise the limit (ulimit -n)",
    ),
    "processes and threads": (
        ("can't start new thread", "Resource temporarily unavailable"),
        "choose fewer --workers, or raise the limit (ulimit -u)",
    ),
}
"""What a process may run out of: words of the errors that say so, and what helps."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; it ends as at Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Have signals that end a process raise :class:`Stopped` instead, so that it ends cleanly."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # What is ignored stays ignored, as nohup wants it.
    taken = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def begins_again() -> Iterator[None]:
    """Have an interrupt say that the same command begins again, not that it resumes."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.told = "Interrupted. The same command begins again."
        raise


def open_streams() -> None:
    """See to it that whatever is printed goes somewhere.

    Raises:
        SystemExit: If standard output is closed: a command would print for nothing.
    """
    if sys.stdout is None:
        sys.exit("Error: Expected an open standard output, got a closed one.")
    for number in (0, 2):
        try:
            os.fstat(number)
        except OSError:
            # Or the next file that is opened would get this number, and libraries' warnings.
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def end_with(error: BaseException) -> int:
    """Tell what went wrong in one line; return the exit code.

    Raises:
        BaseException: The error itself, where it is none that is foreseen.
    """
    if isinstance(error, click.exceptions.Abort | KeyboardInterrupt):
        chain = [e for e in (error, error.__cause__) if e is not None]
        _tell(next((e.told for e in chain if hasattr(e, "told")), INTERRUPTED))
        stopped = next((e for e in chain if isinstance(e, Stopped)), None)
        return 128 + (stopped.number if stopped else signal.SIGINT)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.message = message(error.message)
        with contextlib.suppress(OSError):
            error.show()
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return 1
    reason = _reason(error)
    if reason is None:
        raise error
    if isinstance(error, OSError) and error.filename is None and error.errno in FULL:
        _silence_stdout()
    _tell(f"Error: {message(' '.join(reason.split()))}")
    return 1


def _reason(error: BaseException) -> str | None:
    if isinstance(error, GradScoreError):
        return as_options(error)
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError | OSError | RuntimeError | ImportError):
        for what, (words, help) in LACKING.items():
            if isinstance(error, MemoryError) or any(word in text for word in words):
                return f"Expected more {what} than this process may use: {_last(text)}; {help}."
    if isinstance(error, OSError):
        # Files' own errors are told where they are written; what has no name is the output.
        if error.filename is None and error.errno in FULL:
            return f"Cannot write to standard output: {error.strerror}."
        if error.filename is not None:
            return f"{error.filename}: {error.strerror or error}."
    return None


def _last(text: str) -> str:
    """Return the last line: from a decoding process a whole traceback comes as the text."""
    return text.strip().splitlines()[-1].removesuffix(".")


def _tell(line: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def _silence_stdout() -> None:
    """Drop what is left in the buffer, which would be tried again at the end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
