"""What the commands print: tables and facts on stdout, notices and progress on stderr.

All text goes through here, as file names and the like may hold what a terminal would obey. The
library's messages name its own arguments, in backquotes: ``limit=N`` and the like. On the command
line they are options.
"""

import ast
import contextlib
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from gradscore.escapes import message, printable

PLAIN_LINE_EVERY_S = 10.0
NARROWEST = 12
"""Characters of a text that a column always shows."""
BETWEEN, EDGES = "   ", "  "
"""Blanks between two columns, and beside all."""
_ARGUMENT = re.compile(r"`([a-z_]+)=([^`]+)`")
ALONE = ("cross_fit", "dimension", "fit", "method", "part", "tpr")
"""Arguments that messages name without a value."""
_ALONE = re.compile(f"`({'|'.join(ALONE)})`")
_FIELD = re.compile(r"'([a-z]+)': ('[^']*'|\([^)]*\)|[^,}]+)")


def print_table(
    columns: Sequence[str | tuple[str, ...]],
    rows: Iterable[Sequence[str]],
    *,
    left: int = 1,
    title: str = "",
    droppable: Sequence[int] = (),
) -> list[str]:
    """Print a table; the first ``left`` columns are text, the others are right-aligned numbers.

    In a terminal it fits the width, where that holds every number and the beginning of every
    text. In a pipe or a file nothing is cut, wrapped or left out.

    Args:
        columns: Headings; of several lines where they are tuples.
        rows: Texts of the cells.
        left: How many columns are text.
        title: Stands above.
        droppable: Places of columns that are left out where it is narrow, the first first.

    Returns:
        The headings of the columns that were left out.
    """
    from rich import box
    from rich.table import Table

    title = printable(title) or None
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    rows = list(rows)
    columns = [(column,) if isinstance(column, str) else column for column in columns]
    lines = [[*map(printable, column)] for column in columns]
    longest = [
        max([*map(len, heading), *(len(printable(row[place])) for row in rows)])
        for place, heading in enumerate(lines)
    ]
    least = [min(n, NARROWEST) if place < left else n for place, n in enumerate(longest)]
    shown, dropped = list(range(len(columns))), []
    for place in droppable:
        if wide(_width(least[k] for k in shown)):
            break
        shown.remove(place)
        dropped.append(" ".join(columns[place]))
    for place in shown:
        text = place < left
        table.add_column(
            "\n".join(lines[place]),
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=not text,
            min_width=least[place],
        )
    for row in rows:
        table.add_row(*(printable(row[place]) for place in shown))
    _print(table, _width(least[place] for place in shown))
    return dropped


def _width(columns: Iterable[int]) -> int:
    """Return the width of a table whose columns have these widths."""
    widths = list(columns)
    return len(EDGES) + sum(widths) + len(BETWEEN) * (len(widths) - 1)


def print_facts(facts: Mapping[str, str]) -> None:
    """Print names and what they stand for, a line each; where it is narrow they are wrapped."""
    from rich.table import Table

    table = Table.grid(padding=(0, 3))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for fact in facts.items():
        table.add_row(*map(printable, fact))
    _print(table)


def _print(table: Any, least: int = 0) -> None:
    """Print a table in the width there is, at least ``least``; as it is where none is known."""
    from rich.console import Console

    width = available_width() or 10_000
    # Cells are text: neither [red] nor :warning: in a name means anything.
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    # Rich would drop whole columns where they do not fit; a terminal wraps long lines itself.
    console.width = max(console.width, least)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def say(text: object) -> None:
    """Print one line on stdout."""
    click.echo(printable(text))


def wide(columns: int) -> bool:
    """Return whether ``columns`` characters fit on a line; always, where no width is known."""
    return columns <= (available_width() or columns)


def available_width() -> int | None:
    """Return how many characters a line of the terminal holds; None where there is none.

    Outside of a terminal ``COLUMNS`` means nothing: readline sets it for every child of a Python.
    """
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say_left_out(what: Sequence[str]) -> None:
    """Say what a table left out for want of width; nothing where that is nothing."""
    if what:
        say(f"Too narrow for {', '.join(what)}: a wider terminal or -o FILE shows them.")


def notice(text: object, *, quiet: bool = False) -> None:
    """Print one line about what was done or noticed, on stderr; if that is gone, nowhere."""
    if not quiet:
        with contextlib.suppress(OSError):
            click.echo(message(as_options(text)), err=True)


class Progress:
    """A bar in a terminal; elsewhere a plain line every ten seconds; nothing when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar = None
        self._done = self._total = 0
        self._description = ""
        self._printed = 0.0

    def start(self, total: int, description: str) -> None:
        """Begin a piece of work of ``total`` items."""
        self._done, self._total, self._description = 0, total, description
        self._printed = time.monotonic()
        if self.quiet or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(printable(description), total=total)
        self._bar.start()

    def advance(self, n: int) -> None:
        """Count ``n`` more items as done."""
        self._done += n
        if self._bar is not None:
            self._bar.advance(self._task, n)
        elif not self.quiet and time.monotonic() - self._printed > PLAIN_LINE_EVERY_S:
            self._printed = time.monotonic()
            notice(f"{self._description}: {self._done}/{self._total}")

    def finish(self) -> None:
        """End the piece of work, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def tell(self, sentence: str) -> None:
        """Print what the user should know before the first image."""
        notice(sentence, quiet=self.quiet)


def as_options(text: object) -> str:
    """Return a message with the arguments that it names written as options.

    >>> as_options("choose `batch_size='auto'`; give `preprocessing={'resize': 8, 'crop': 8}`")
    'choose --batch-size auto; give --resize 8 --crop 8'
    >>> as_options("a lower `tpr`; leave out `cross_fit`")
    'a lower --tpr; leave out --cross-fit'
    """
    told = _ARGUMENT.sub(_option, str(text))
    return _ALONE.sub(lambda match: _named(match[1]), told)


def _option(match: re.Match) -> str:
    name, value = match.groups()
    if name == "preprocessing":
        return " ".join(_written(*field) for field in _FIELD.findall(value)) or match[0]
    return _written(name, value)


def _written(name: str, value: str) -> str:
    if value[0] in "\"'":
        with contextlib.suppress(ValueError, SyntaxError):
            value = shlex.quote(str(ast.literal_eval(value)))
    return f"{_named(name)} {value}"


def _named(name: str) -> str:
    return f"--{name.replace('_', '-')}"
