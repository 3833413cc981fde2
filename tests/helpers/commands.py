"""Commands run in this process, as a user types them."""

import sys

from gradscore.cli import main


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
