"""What sets and classes are called on the page."""

from gradscore.reporting.markup import LONGEST, clipped
from gradscore.run import RunInfo, SetInfo

ROLES = {"id": "ID", "ood": "OOD", "fit": "to fit to", None: "no role", "surrogate": "surrogate"}


def set_label(entry: SetInfo, most: int = LONGEST) -> str:
    """Return a set's name, or of a longer one than ``most`` its two ends, with its role."""
    return f"{clipped(entry.name, most)} ({ROLES[entry.role]})"


def as_sentence(clause: str) -> str:
    """Return a clause as a sentence.

    >>> as_sentence("no set to fit to")
    'No set to fit to.'
    """
    return f"{clause[:1].upper()}{clause[1:].rstrip('.')}."


def class_label(about: RunInfo, number: int) -> str:
    """Return the name of a class, or its number where no name is known."""
    return f"class {number}" if about.class_names is None else about.class_names[number]
