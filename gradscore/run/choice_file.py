"""``fits/choice.json``: which score was last chosen for a run's model, written and read strictly.

A run may come from someone else: the file is refused unless it says what a choice can say. The
names of methods are text here; what they mean is asked where they are used.
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradscore.run.files import DamagedFile, read_below
from gradscore.run.names import CHOICE_FILE
from gradscore.strict_json import MAY_BE_ABSENT, Unexpected, parse, typed

LARGEST_CHOICE = 1 << 24
"""Most bytes of the file: a thousand scores on a thousand shifts."""
TABLES = ("far", "near")
Plain = str | int | float | bool
"""What an option of a score can be."""


@dataclasses.dataclass(frozen=True)
class ScoreRecord:
    """What one score was worth.

    Attributes:
        method: Its method's name, or ``python:module:function``.
        options: Its options by name.
        value: Mean logit AUROC over the shifts, without unit.
        value_low: Lower end of its 95% bootstrap interval.
        value_high: Upper end.
        aurocs: AUROC on each shift by its name, fractions.
        tied: Whether the best score's lead over it is within the bootstrap's spread.
    """

    method: str
    options: dict[str, Any]
    value: float
    value_low: float
    value_high: float
    aurocs: dict[str, float]
    tied: bool


@dataclasses.dataclass(frozen=True)
class ChoiceRecord:
    """What a choice said.

    Attributes:
        recommended: The method of the recommended score as ``method``, and its options.
        by: ``far`` or ``near``: the table that it was taken from.
        warning: Why no score is to be trusted, or None.
        notes: What was left out of a table, and why.
        id: Names of the ID sets.
        far: Scores by how well they tell ID images from surrogates, best first.
        near: The same for images of classes that the head lacks.
        own: Of a recommended score of the user's own a SHA-256 of its functions, empty where
            there is none; None for gradscore's scores.
    """

    recommended: dict[str, Any]
    by: str
    warning: str | None
    notes: list[str]
    id: list[str]
    far: list[ScoreRecord]
    near: list[ScoreRecord]
    own: str | None = dataclasses.field(default=None, metadata=MAY_BE_ABSENT)

    @property
    def method(self) -> str:
        """The recommended method."""
        return self.recommended["method"]

    @property
    def options(self) -> dict[str, Any]:
        """Its options by name."""
        return {name: value for name, value in self.recommended.items() if name != "method"}

    def to_json(self) -> str:
        """Return the content of the file; equal choices give equal bytes."""
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"


def read_choice_file(root: Path) -> ChoiceRecord | None:
    """Return what the choice of a run said, or None where there is none.

    Args:
        root: The run's directory.

    Raises:
        DamagedFile: If the file does not say what a choice can say.
        RunError: If it may not be read.
    """
    if not os.path.lexists(root / CHOICE_FILE):
        return None
    content = read_below(root, CHOICE_FILE, LARGEST_CHOICE)
    try:
        record = typed(ChoiceRecord, parse(content.decode()), "")
        for fault in _faults(record):
            raise Unexpected(fault)
    except UnicodeDecodeError:
        raise DamagedFile(root / CHOICE_FILE, "is damaged: it is not UTF-8") from None
    except Unexpected as error:
        raise DamagedFile(root / CHOICE_FILE, f"is damaged: {error}") from None
    return record


def _faults(record: ChoiceRecord) -> Iterator[str]:
    """Yield what no choice can say."""
    if record.by not in TABLES:
        yield f"expected far or near as by, got {record.by!r}"
    elif record.by == "near" and record.far:
        yield "expected by far where there is a far table"
    if not isinstance(record.recommended.get("method"), str):
        yield "expected a method in recommended"
    if not record.id:
        yield "expected an ID set in id"
    for name in TABLES:
        for place, row in enumerate(getattr(record, name)):
            yield from _row_faults(row, f"{name}[{place}]")
    rows = record.far if record.by == "far" else record.near
    if not any((row.method, row.options) == (record.method, record.options) for row in rows):
        yield f"expected the recommended score in the {record.by} table"


def _row_faults(row: ScoreRecord, where: str) -> Iterator[str]:
    if not row.value_low <= row.value <= row.value_high < math.inf:
        yield f"expected value_low <= value <= value_high in {where}"
    if not row.aurocs or not all(0 <= figure <= 1 for figure in row.aurocs.values()):
        yield f"expected AUROCs of 0 to 1 in {where}"
    for name, value in row.options.items():
        if not isinstance(value, Plain):
            yield f"expected a text or a number as {where}.options.{name}"
