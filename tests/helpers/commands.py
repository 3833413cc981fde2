"""Commands run as a user types them: in this process, or in a fork of it."""

import contextlib
import io
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch

import gradscore
from gradscore.cli import main

HOME = Path(gradscore.__file__).parents[1]
"""Where a fresh interpreter finds the package that is tested, with what was compiled for it."""


def call(*arguments):
    """Run the command line in this process; return its exit code."""
    before = sys.argv
    sys.argv = ["gradscore", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        return stop.code
    finally:
        sys.argv = before


def fails(capsys, *arguments, code=1):
    """Run a command that must fail; return its one line of error."""
    assert call(*arguments) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.err.strip().splitlines()
    if code == 1:
        assert len(lines) == 1, lines
    assert lines[-1].startswith("Error: ")
    return lines[-1]


@contextlib.contextmanager
def child(*arguments, stdout=None, cwd=None, closed=(), buffering=-1):
    """Yield the pid of a process that runs a command, and the file with what it writes to stderr.

    The process is a fork of this one: torch is loaded already. It ends as Python's own does.

    Args:
        *arguments: Of the command.
        stdout: File descriptor in place of the standard output; None leaves it.
        cwd: Folder to start in.
        closed: Of the standard streams 0, 1 and 2, those that are closed.
        buffering: Of the standard output; 0 as with ``PYTHONUNBUFFERED``.
    """
    with tempfile.TemporaryFile() as errors:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads
            pid = os.fork()
        if pid:
            yield pid, errors
            return
        code = 120
        try:
            _redirect(stdout, errors.fileno(), closed, buffering)
            os.chdir(cwd or ".")
            torch.set_num_threads(1)
            code = call(*arguments)
            if isinstance(code, str):  # as Python itself takes such an exit code
                os.write(2, f"{code}\n".encode())
                code = 1
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except BaseException:
            code = 120
            os.write(errors.fileno(), traceback.format_exc().encode())
        finally:
            os._exit(code)


def _redirect(stdout, stderr, closed, buffering):
    os.dup2(stderr, 2)
    if stdout is not None:
        os.dup2(stdout, 1)
    streams = {0: ("stdin", "r"), 1: ("stdout", "w"), 2: ("stderr", "w")}
    for number, (name, mode) in streams.items():
        if number in closed:
            os.close(number)
            setattr(sys, name, None)
        elif number:
            unbuffered = buffering == 0
            file = os.fdopen(number, f"{mode}b", 0 if unbuffered else -1, closefd=False)
            setattr(sys, name, io.TextIOWrapper(file, write_through=unbuffered))


def forked(*arguments, **how):
    """Run a command in a fork of this process; return its exit code, output and errors."""
    with tempfile.TemporaryFile() as output:
        how = {"stdout": output.fileno(), **how}
        with child(*arguments, **how) as (pid, errors):
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            errors.seek(0)
            output.seek(0)
            return code, output.read().decode(), errors.read().decode()
