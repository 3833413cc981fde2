"""One HTML file that needs nothing else: template, style, program and their policy."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from gradscore.palette import TONES
from gradscore.reporting.markup import Markup, joined, tag


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        name: Its address within the page.
        title: Its heading.
        content: What it holds.
    """

    name: str
    title: str
    content: Markup


def make_page(
    title: str, lead: Markup, sections: Sequence[Section], footer: Markup, data: Any
) -> bytes:
    """Return the page; equal content gives equal bytes.

    Nothing is loaded from anywhere: the page's policy allows its own style and program, by their
    digests, and images that it holds.

    Args:
        title: What the report is of.
        lead: The first lines below it.
        sections: Its parts, in order.
        footer: The last lines.
        data: Numbers that the page's program looks up.
    """
    style, program = _tones() + resource("report.css"), resource("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(program)}'; base-uri 'none'; form-action 'none'"
    )
    links = [tag("li", tag("a", section.title, href=f"#{section.name}")) for section in sections]
    parts = {
        "policy": policy,
        "title": joined(title),
        "style": style,
        "lead": lead,
        "contents": tag("ol", *links),
        "sections": joined(*map(_section, sections)),
        "footer": footer,
        "data": _inert(json.dumps(data, separators=(",", ":"), allow_nan=False)),
        "program": program,
    }
    return _filled(resource("template.html"), parts).encode()


@cache
def resource(name: str) -> str:
    """Return a text file that stands beside this module."""
    return files("gradscore.reporting").joinpath(name).read_text("utf-8")


@cache
def _tones() -> str:
    """Return the colours of sets as variables, and a class that takes each."""
    light = "".join(f"--{k}:{tone.line};--{k}-pale:{tone.fill};" for k, tone in TONES.items())
    dark = "".join(
        f"--{k}:{tone.dark_line};--{k}-pale:{tone.dark_fill};" for k, tone in TONES.items()
    )
    taken = "".join(f".tone-{k}{{--tone:var(--{k});--tone-pale:var(--{k}-pale)}}\n" for k in TONES)
    scheme = "@media (prefers-color-scheme: dark)"
    return f":root{{{light}}}\n{scheme}{{:root{{{dark}}}}}\n{taken}"


def _section(section: Section) -> Markup:
    heading = tag("h2", section.title, id=f"{section.name}-title")
    how = {"id": section.name, "aria_labelledby": f"{section.name}-title"}
    return tag("section", heading, section.content, **how)


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """Put each part at its place, once: what a part holds is not filled in again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def _inert(text: str) -> str:
    """Return JSON in which nothing ends the element that holds it."""
    return text.replace("<", "\\u003c")


def _digest(text: str) -> str:
    """Return what a policy calls an element with this content."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
