"""HTML and SVG written so that nothing from a run is ever markup: text is escaped by default."""

import html
from typing import Any

from gradscore.escapes import printable

LONGEST = 600
"""Characters of a text that are shown; of a longer one its two ends."""
_EMPTY = ("br", "img", "input", "meta", "rect", "line", "path", "circle")
"""Elements that hold nothing."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(text: object) -> Markup:
    r"""Return a text as HTML shows it: in one line, no character of it obeyed.

    >>> print(escaped("<b>\u202e & 'x'"))
    &lt;b&gt;\u202e &amp; &#x27;x&#x27;
    """
    return Markup(html.escape(clipped(printable(text))))


def clipped(text: str, most: int = LONGEST) -> str:
    """Return a text, or of one of more characters its two ends.

    >>> clipped("abcdefgh", 6)
    'abc ... fgh'
    """
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2) :]}"


def tag(element: str, *children: Any, **attributes: Any) -> Markup:
    """Return an element.

    Args:
        element: Its name.
        *children: What it holds; all but :class:`Markup` is escaped, None is nothing.
        **attributes: A trailing underscore is dropped and others are hyphens; True stands alone,
            None and False leave the attribute out.

    >>> print(tag("p", "a < b", class_="note", hidden=True, aria_label='"'))
    <p class="note" hidden aria-label="&quot;">a &lt; b</p>
    """
    written = "".join(
        f" {_name(name)}" if value is True else f' {_name(name)}="{_value(value)}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if element in _EMPTY:
        return Markup(f"<{element}{written}/>")
    return Markup(f"<{element}{written}>{joined(*children)}</{element}>")


def joined(*children: Any) -> Markup:
    """Return contents one behind the other, escaped unless they are markup."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escaped(child)
            for child in children
            if child is not None
        )
    )


def breakable(text: object) -> Markup:
    """Return a text that may go on in the next line behind each underscore."""
    return Markup(escaped(text).replace("_", "_<wbr>"))


def table(caption: object, columns: list[Any], rows: list[list[Any]], **attributes: Any) -> Markup:
    """Return a table; the first cell of each row is its header.

    Args:
        caption: What it shows, for readers who do not see it too.
        columns: Headers.
        rows: Cells: contents, or a ready ``<td>``.
        **attributes: Of the element that scrolls where the table is too wide.
    """
    head = tag("tr", *(tag("th", column, scope="col") for column in columns))
    body = [
        tag("tr", tag("th", first, scope="row"), *(_cell(cell) for cell in rest))
        for first, *rest in rows
    ]
    inner = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body))
    return scrolled(inner, caption, **attributes)


def scrolled(content: Markup, label: object, **attributes: Any) -> Markup:
    """Return a region that scrolls sideways, by keyboard too."""
    how = {"class_": "scroll", "tabindex": 0, "role": "region", "aria_label": label}
    return tag("div", content, **(how | attributes))


def details(summary: object, *children: Any) -> Markup:
    """Return what is shown when it is asked for."""
    return tag("details", tag("summary", summary), *children)


def note(*children: Any, kind: str = "note") -> Markup:
    """Return a paragraph that stands apart: a ``note``, or a ``warning``."""
    lead = tag("strong", "Warning. ") if kind == "warning" else None
    told = (child if isinstance(child, Markup) else prose(child) for child in children)
    return tag("p", lead, *told, class_=kind)


def prose(text: str) -> Markup:
    """Return a message as HTML: what it has between backticks is a command.

    >>> print(prose("a < b: `choose --run r`"))
    a &lt; b: <code>choose <span>--run</span> r</code>
    """
    parts = clipped(printable(text)).split("`")
    if len(parts) % 2 == 0:
        return escaped(text)
    return joined(*(command(part) if place % 2 else part for place, part in enumerate(parts)))


def command(text: str) -> Markup:
    """Return a command to type; no line breaks within an option."""
    words = [
        tag("span", word) if word.startswith("-") else escaped(word) for word in text.split(" ")
    ]
    return tag("code", Markup(" ".join(words)))


def _cell(content: Any) -> Markup:
    if isinstance(content, Markup) and content.startswith("<td"):
        return content
    return tag("td", content)


def _value(value: Any) -> str:
    """Return an attribute; a drawing's path may be long."""
    return value if isinstance(value, Markup) else html.escape(printable(value))


def _name(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
