"""What sets and classes are called on the page."""

from gradscore.reporting.markup import Markup, breakable, joined
from gradscore.run import RunInfo, SetInfo

ROLES = {"id": "ID", "ood": "OOD", "fit": "to fit to", None: "no role", "surrogate": "surrogate"}


def set_label(entry: SetInfo) -> Markup:
    """Return a set's name with its role."""
    return joined(breakable(entry.name), f" ({ROLES[entry.role]})")


def short_label(entry: SetInfo, most: int) -> str:
    """Return a set's name with its role, of a longer name than ``most`` its start and its end.

    Names that begin alike differ at their end: more of that is shown.
    """
    name = entry.name
    if len(name) > most:
        start = most // 3
        name = f"{name[:start]}…{name[start + 1 - most :]}"
    return f"{name} ({ROLES[entry.role]})"


def as_sentence(clause: str) -> str:
    """Return a clause as a sentence.

    >>> as_sentence("no set to fit to")
    'No set to fit to.'
    """
    return f"{clause[:1].upper()}{clause[1:].rstrip('.')}."


def class_label(about: RunInfo, number: int) -> str:
    """Return the name of a class, or its number where no name is known."""
    return f"class {number}" if about.class_names is None else about.class_names[number]
