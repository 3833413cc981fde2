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
ENDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
"""AUROCs at which the axis of a table may begin."""
TABLES = {
    "far": (
        "Against changed copies of the ID images",
        "How well each score tells the ID images from changed copies of them. The copies are "
        "shuffled, scrambled or turned, so that they no longer look like any class.",
    ),
    "near": (
        "Against classes that were removed",
        "Some classes are removed from the last layer, then others. How well each score tells "
        "the remaining ID images from images of the removed classes, which look much like them.",
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
    chosen = (record.method, record.options) if which == record.by else None
    heading = joined(tag("h3", title), tag("p", told))
    perfect = sum(_is_perfect(row) for row in rows)
    if perfect >= SHOWN or perfect == len(rows):
        how_many = "All" if perfect == len(rows) else f"{perfect} of the"
        said = note(
            f"{how_many} {counted(len(rows), 'score')} tell these images apart without a mistake "
            "(100.0%): the table does not rank them."
        )
        whole = _ranked(title, rows[:MOST], chosen)
        return joined(heading, said, details("The table", whole))
    shown, more = _ranked(title, rows[:SHOWN], chosen), rows[SHOWN:MOST]
    if not more:
        return joined(heading, shown)
    rest = _ranked(title, more, chosen, before=SHOWN)
    return joined(heading, shown, details(f"{len(more)} more scores", rest))


def _ranked(
    title: str,
    rows: Sequence[ScoreRecord],
    chosen: tuple[str, dict[str, object]] | None,
    before: int = 0,
) -> Markup:
    """Return scores as a table, on an axis on which they differ; ``before`` stand above them."""
    ends = [tuple(map(_auroc, (row.value, row.value_low, row.value_high))) for row in rows]
    axis = Axis(max((end for end in ENDS if end <= min(map(min, ends))), default=ENDS[0]), 1.0)
    kinds = [*rows[0].aurocs][:MOST_KINDS]
    cells = []
    for place, (row, (mean, low, high)) in enumerate(zip(rows, ends, strict=True), before + 1):
        best = chosen == (row.method, row.options)
        mark = "recommended" if best else "ties with the best" if row.tied else ""
        cells.append(
            [
                joined(
                    f"{place}. ",
                    breakable(_name(row.method, row.options)),
                    tag("span", mark, class_="mark") if mark else None,
                ),
                f"{100 * mean:.1f}%",
                tag("td", _mark(*map(axis.share, (mean, low, high)), best), class_="bar"),
                f"{100 * low:.1f}% to {100 * high:.1f}%",
                *(f"{100 * row.aurocs[k]:.1f}%" if k in row.aurocs else "" for k in kinds),
            ]
        )
    reach = f"axis: {100 * axis.low:g}% to 100%"
    return table(title, ["Score", "AUROC", reach, "95% interval", *kinds], cells)


def _is_perfect(row: ScoreRecord) -> bool:
    """Say whether a score's figures and its interval are all 100.0%."""
    return all(share >= 0.9995 for share in (_auroc(row.value_low), *row.aurocs.values()))


def _auroc(value: float) -> float:
    """Return the AUROC whose log-odds are a score's value."""
    return 1 / (1 + math.exp(-value))


def _mark(share: float, low: float, high: float, chosen: bool) -> Markup:
    """Return a dot on its interval: a bar would say that the axis begins at nothing."""
    ends = {"x1": f"{100 * low:.1f}%", "x2": f"{100 * high:.1f}%"}
    return tag(
        "svg",
        tag("rect", x=0, y=3, width="100%", height=8, class_="track"),
        tag("line", **ends, y1=7, y2=7, class_="spread"),
        tag("circle", cx=f"{100 * share:.1f}%", cy=7, r=4.5, class_="fill"),
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
