"""Text from files made harmless where it is shown: in a terminal, a CSV, a table.

File names, class names and libraries' errors are written by whoever made the files. They can
hold sequences that a terminal obeys, line breaks that forge a line, and cells that a spreadsheet
computes.
"""

import re
from collections.abc import Iterable

LONGEST = 2000
"""Characters of a message that are shown."""
LONGEST_NAME = 80
"""Characters of a name that a message shows."""
FORMULAS = "=+-@\t\r\uff1d\uff0b\uff0d\uff20"
"""With these, or their wide forms, a cell begins that a spreadsheet would compute."""
MARK = "'"
"""Begins a CSV cell that is written in escaped form; spreadsheets take the rest as plain text."""
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    **{c: f"{{{c}}}" for c in "[]*`'"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{'"': r"\symbol{34}", "∞": r"$\infty$"},  # with any font encoding
}
_MARKDOWN = re.compile(r"[\\`*<>\[\]|~$&]|(?<![^\W_])_|_(?![^\W_])")


def printable(text: object) -> str:
    r"""Return a text in one line, without anything that a terminal would obey.

    Control characters, line breaks, marks that turn the direction of writing, and halves of
    characters are written as Python writes them.

    >>> print(printable("a\x1b[31m\n\u202eb é"))
    a\x1b[31m\n\u202eb é
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def message(text: object) -> str:
    """Return a text in one line; the middle of a very long one is left out."""
    text = printable(text)
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]} ... {text[-half:]}"


def listed(names: Iterable[object], shown: int = 8) -> str:
    """Return the first names, of each its beginning, and how many more there are."""
    names = [str(name) for name in names]
    names = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in names]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def counted(n: int, noun: str) -> str:
    """Return ``n`` with its noun, in the plural where it is not one.

    >>> counted(1, "image"), counted(2000, "image")
    ('1 image', '2,000 images')
    """
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def to_cell(text: str) -> str:
    r"""Return a text as the cell of a CSV; :func:`from_cell` gives it back.

    Most are the same. What begins as a formula does, or holds control characters, is written
    behind an apostrophe, with ``\n`` and the like for what does not print.

    >>> to_cell("a.png"), to_cell("=1+1"), to_cell("a\nb")
    ('a.png', "'=1+1", "'a\\nb")
    """
    if text.isprintable() and not text.startswith((*FORMULAS, MARK)):
        return text
    return MARK + printable(text.replace("\\", "\\\\"))


def from_cell(cell: str) -> str:
    r"""Return the text that :func:`to_cell` wrote as ``cell``; any other cell as it is.

    >>> from_cell("'=1+1"), from_cell("'tis.png")
    ('=1+1', "'tis.png")
    """
    if not cell.startswith(MARK):
        return cell
    text = re.sub(r"\\(\\|[nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})", _meant, cell[1:])
    return text if to_cell(text) == cell else cell


def to_markdown(text: str) -> str:
    r"""Return a text as the cell of a Markdown table, shown as it is.

    >>> print(to_markdown("a|b*"), to_markdown("max_logit"))
    a\|b\* max_logit
    """
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def to_latex(text: str) -> str:
    r"""Return a text that LaTeX sets as it is, also where it begins a row of a table.

    >>> print(to_latex("max_logit"), to_latex("[50%]"), to_latex("a--b"))
    max\_logit {[}50\%{]} a-{}-b
    """
    return "".join(_LATEX.get(c, c) for c in printable(text)).replace("--", "-{}-")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _meant(match: re.Match) -> str:
    escape = match[1]
    if escape[0] in "xuU":
        code = int(escape[1:], 16)
        return chr(code) if code < 0x110000 else match[0]
    return {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}[escape]
