"""The choice of a score: all scores ranked by ID images alone, and what that is worth."""

import math
from collections.abc import Sequence
from contextlib import suppress

from gradscore.choosing.stored import spec_of
from gradscore.errors import GradScoreError
from gradscore.escapes import counted
from gradscore.reporting.markup import (
    Markup,
    breakable,
    command,
    details,
    joined,
    note,
    table,
    tag,
)
from gradscore.reporting.scales import Axis
from gradscore.run import ChoiceRecord, RunStore, ScoreRecord
from gradscore.run.hints import command as command_text

SHOWN, MOST = 8, 60
"""Scores of a table that are shown at once, and at all."""
MOST_KINDS = 8
"""Kinds of images, such as surrogates, that have a column of their own."""
MOST_NOTES = 20
TABLES = {
    "far": (
        "Against changed copies of the ID images",
        "How well each score tells the ID images from copies of them that were shuffled, "
        "scrambled or turned: images that show nothing known.",
    ),
    "near": (
        "Against classes that the head lacks",
        "Classes are taken from the last layer in turn. How well each score tells their images "
        "from the others: images that look much like ID ones.",
    ),
}


def draw_choice(record: ChoiceRecord | None, store: RunStore) -> Markup:
    """Return the ranking that the run keeps, or the command that makes one."""
    if record is None:
        make = command_text("choose", store.path).strip("`")
        return joined(
            note(
                "No score was chosen for this model. Which one serves best differs from model to "
                "model. This command asks the model's own ID images and keeps the answer in the "
                "run: ",
                command(make),
            )
        )
    best = _name(record.method, record.options)
    parts = [tag("p", "Recommended for this model: ", tag("strong", best), ".")]
    if record.warning:
        parts.append(note(record.warning, kind="warning"))
    for which, rows in (("far", record.far), ("near", record.near)):
        if rows:
            parts.append(_table(which, rows, record))
    parts += [note(text) for text in record.notes[:MOST_NOTES]]
    parts.append(
        note(
            "No OOD image was read for this ranking. AUROC: 100% tells all images apart, 50% is a "
            "coin toss. It is averaged over the kinds as log-odds: 99% against 98% counts as much "
            "as 66% against 50%."
        )
    )
    return joined(*parts)


def _table(which: str, rows: Sequence[ScoreRecord], record: ChoiceRecord) -> Markup:
    title, told = TABLES[which]
    axis = Axis(0.5, 1.0)
    cells = []
    kinds = [*rows[0].aurocs][:MOST_KINDS]
    for place, row in enumerate(rows[:MOST]):
        mean, low, high = map(_auroc, (row.value, row.value_low, row.value_high))
        chosen = which == record.by and (row.method, row.options) == (
            record.method,
            record.options,
        )
        name = _name(row.method, row.options)
        mark = "recommended" if chosen else "ties with the best" if row.tied else ""
        figures = [
            f"{100 * row.aurocs[kind]:.1f}%" if kind in row.aurocs else "" for kind in kinds
        ]
        cells.append(
            [
                joined(
                    f"{place + 1}. ",
                    breakable(name),
                    tag("span", mark, class_="mark") if mark else None,
                ),
                f"{100 * mean:.1f}%",
                tag("td", _bar(*map(axis.share, (mean, low, high)), chosen), class_="bar"),
                f"{100 * low:.1f}% to {100 * high:.1f}%",
                *figures,
            ]
        )
    columns = ["Score", "AUROC", "50% to 100%", "95% interval", *kinds]
    heading = joined(tag("h3", title), tag("p", told))
    perfect = sum(_is_perfect(row) for row in rows)
    if perfect >= SHOWN or perfect == len(rows):
        which = "All" if perfect == len(rows) else f"{perfect} of the"
        said = note(
            f"{which} {counted(len(rows), 'score')} tell these images apart without a mistake "
            "(100.0%): the table does not rank them."
        )
        return joined(heading, said, details("The table", table(title, columns, cells)))
    shown = table(title, columns, cells[:SHOWN])
    more = cells[SHOWN:]
    rest = details(f"{len(more)} more scores", table(title, columns, more)) if more else None
    return joined(heading, shown, rest)


def _is_perfect(row: ScoreRecord) -> bool:
    """Say whether a score's figures and its interval are all 100.0%."""
    return all(share >= 0.9995 for share in (_auroc(row.value_low), *row.aurocs.values()))


def _auroc(value: float) -> float:
    """Return the AUROC whose log-odds are a score's value."""
    return 1 / (1 + math.exp(-value))


def _bar(share: float, low: float, high: float, chosen: bool) -> Markup:
    width = f"{100 * share:.1f}%"
    ends = {"x1": f"{100 * low:.1f}%", "x2": f"{100 * high:.1f}%"}
    return tag(
        "svg",
        tag("rect", x=0, y=3, width="100%", height=8, class_="track"),
        tag("rect", x=0, y=3, width=width, height=8, class_="fill"),
        tag("line", **ends, y1=7, y2=7, class_="spread"),
        class_="tone-id" if chosen else None,
        width="100%",
        height=14,
        aria_hidden="true",
    )


def _name(method: str, options: dict[str, object]) -> str:
    """Return what a score is called; one that is not known here by what its record says."""
    with suppress(GradScoreError):
        return spec_of(method, options).title()
    return method
