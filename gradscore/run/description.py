"""What a run's own facts are called where people read them."""

import os
from html import escape

from gradscore.escapes import counted, printable
from gradscore.run.layout import BASE, RunInfo, SetInfo

WEIGHTS = {
    "arrays": "of the last layer alone",
    "digits": "embedded",
    "python": "of the factory itself",
    "timm": "pretrained, of the library",
    "torchvision": "pretrained, of the library",
    "hf": "of the folder itself",
}
"""What weights a model has by default, by its family."""


def preprocessing_text(about: RunInfo) -> str:
    """Return how a run's pictures are made ready for its model."""
    return ", ".join(f"{field} {value}" for field, value in about.preprocessing.items())


def weights_text(about: RunInfo) -> str:
    """Return where the weights of a run's model come from."""
    family = about.model.partition(":")[0]
    return about.weights or WEIGHTS.get(family, "of the model that was given")


def summary_text(path: str | os.PathLike, about: RunInfo) -> str:
    """Return what a run holds, a line a set."""
    head = f"Run({os.fspath(path)!r}): model {about.model}, {about.classes:,} classes"
    lines = [f"  {entry.name}: {', '.join(_of_set(entry))}" for entry in about.sets.values()]
    return "\n".join(map(printable, [head, *lines]))


def summary_html(path: str | os.PathLike, about: RunInfo) -> str:
    """Return what a run holds as a table, for notebooks; every text is escaped."""

    def text(value: str) -> str:
        return escape(printable(value))

    head = f"Run {os.fspath(path)}: model {about.model}, {about.classes:,} classes"
    rows = [
        "".join(f"<td>{text(cell)}</td>" for cell in (entry.name, *_of_set(entry)))
        for entry in about.sets.values()
    ]
    names = "".join(f"<th>{name}</th>" for name in ("set", "role", "images", "recorded"))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<p>{text(head)}</p><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"
    )


def _of_set(entry: SetInfo) -> tuple[str, str, str]:
    """Return a set's role, its number of images, and what is recorded of it."""
    unfinished = entry.rows - entry.done(BASE)
    images = counted(entry.rows, "image") + (f", {unfinished:,} not recorded" * (unfinished > 0))
    passes = [name for name in entry.passes if name != BASE]
    return entry.role or "no role", images, ", ".join(["features and logits", *passes])
