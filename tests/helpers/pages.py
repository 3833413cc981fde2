"""A report read back: its elements, as plain Python finds them without a browser."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path


class Element:
    """One element: its name, attributes, and what it holds."""

    def __init__(self, name, attributes):
        self.name, self.attributes, self.children = name, attributes, []

    @property
    def text(self):
        """All text below it, words apart by single blanks."""
        parts = [part if isinstance(part, str) else part.text for part in self.children]
        return " ".join("".join(f" {part} " for part in parts).split())

    def all(self, name=None, **attributes):
        """Return the elements below it of a name and with some attributes."""
        wanted = {
            key.rstrip("_").replace("_", "-"): str(value) for key, value in attributes.items()
        }
        found = []
        for child in self.children:
            if isinstance(child, Element):
                fits = name in (None, child.name)
                if fits and wanted.items() <= child.attributes.items():
                    found.append(child)
                found += child.all(name, **attributes)
        return found

    def one(self, name=None, **attributes):
        """Return the only such element."""
        (found,) = self.all(name, **attributes)
        return found


class Page(HTMLParser):
    """A whole page; every element that is opened must be closed in its order.

    Args:
        path: The file.
    """

    EMPTY = ("br", "img", "input", "meta", "link", "rect", "line", "path", "circle")

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.content = Path(path).read_bytes()
        self.source = self.content.decode()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(self.source)
        assert [element.name for element in self.open] == [""], "an element is not closed"

    def handle_starttag(self, tag, attrs):
        if tag == "wbr":
            return
        element = Element(tag, {key: "" if value is None else value for key, value in attrs})
        self.open[-1].children.append(element)
        if tag not in self.EMPTY:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        assert tag in self.EMPTY, tag
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop().name == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        children = self.open[-1].children
        if children and isinstance(children[-1], str):  # a place to break a line parts no word
            children[-1] += data
        else:
            children.append(data)

    def section(self, name):
        """Return a part of the page by its address."""
        return self.root.one("section", id=name)

    @property
    def data(self):
        """The numbers that the page's program looks up."""
        return json.loads(self.root.one("script", id="data").children[0])

    @property
    def policy(self):
        """The page's content security policy: directive to its words."""
        (meta,) = [m for m in self.root.all("meta") if "http-equiv" in m.attributes]
        parts = html.unescape(meta.attributes["content"]).split(";")
        return {name: words for name, *words in (part.split() for part in parts)}

    def inline(self, name):
        """Return the text of the page's own style or program."""
        return re.search(rf"<{name}>(.*?)</{name}>", self.source, re.S)[1]


def digest(text):
    """Return what a policy calls an element with this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def table_of(element):
    """Return a table's rows as dicts, by the names of its columns."""
    columns = [cell.text for cell in element.one("thead").all("th")]
    rows = []
    for row in element.one("tbody").all("tr"):
        cells = [cell.text for cell in row.children if isinstance(cell, Element)]
        rows.append(dict(zip(columns, cells, strict=True)))
    return rows
