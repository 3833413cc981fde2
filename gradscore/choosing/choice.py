"""What a choice says: every score with what it is worth, and the one to take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradscore.choosing.ranking import Ranked
from gradscore.methods import ScoreSpec
from gradscore.methods.custom import own_digest
from gradscore.run import ChoiceRecord, ScoreRecord

LEAST_FAR, LEAST_NEAR = 0.80, 0.85
"""AUROC below which no score is to be trusted; proposed, not validated."""


@dataclass(frozen=True)
class Row:
    """What one score is worth.

    Attributes:
        spec: The score.
        ranked: Its value, interval and AUROCs.
    """

    spec: ScoreSpec
    ranked: Ranked

    def to_record(self) -> ScoreRecord:
        """Return the row as a file holds it."""
        found = self.ranked
        figures = (found.value, found.low, found.high, found.aurocs, found.tied)
        return ScoreRecord(self.spec.method, options_of(self.spec), *figures)


@dataclass(frozen=True)
class ChosenBy:
    """The images of a set that a choice was made by.

    Attributes:
        name: Name of the set.
        images: How many chose: all, or images of the half that the set and a fixed seed give.
        of: How many the set holds.
    """

    name: str
    images: int
    of: int


@dataclass(frozen=True)
class Choice:
    """Which score to trust.

    Attributes:
        spec: The recommended score.
        by: ``far`` or ``near``: the table that it was taken from.
        warning: Why no score is to be trusted, or None.
        far: Scores by how well they tell ID images from surrogates, best first; empty where no
            surrogates are recorded.
        near: The same for images of classes that the head lacks; empty where there are none.
        notes: Which images chose; what was left out of a table, and why.
        sets: Names of the ID sets.
        chosen_by: The images that chose, and taught what was compared.
        not_kept: Why the run could not keep the choice, or empty.
    """

    spec: ScoreSpec
    by: str
    warning: str | None
    far: Sequence[Row]
    near: Sequence[Row]
    notes: Sequence[str] = field(default_factory=tuple)
    sets: Sequence[str] = field(default_factory=tuple)
    chosen_by: Sequence[ChosenBy] = field(default_factory=tuple)
    not_kept: str = field(default="", compare=False)

    def to_record(self) -> ChoiceRecord:
        """Return the choice as a file holds it."""
        return ChoiceRecord(
            {"method": self.spec.method, **options_of(self.spec)},
            self.by,
            self.warning,
            list(self.notes),
            list(self.sets),
            [row.to_record() for row in self.far],
            [row.to_record() for row in self.near],
            own_digest(self.spec.definition),
        )

    def to_json(self) -> str:
        """Return the same as text; equal choices give equal bytes."""
        return self.to_record().to_json()


def options_of(spec: ScoreSpec) -> dict[str, Any]:
    """Return the options of a score that are not left out, by name."""
    options = {name: getattr(spec, name) for name in spec.definition.options}
    plain = {k: "inf" if v == np.inf else v for k, v in options.items() if v is not None}
    return plain


def find_warning(far: Sequence[Row], near: Sequence[Row], blind: bool) -> str | None:
    """Return why no score is to be trusted, or None."""
    if blind:
        return (
            "No score is to be trusted here: the model predicts the same for most images after "
            "they were shuffled, scrambled or inverted, whatever they show (more than half of the "
            "predictions: a rule of thumb)."
        )
    told = []
    for table, least, what in (
        (far, LEAST_FAR, "shuffled and scrambled copies of these images"),
        (near, LEAST_NEAR, "images of classes removed from the last layer"),
    ):
        best = max((row.ranked.auroc for row in table), default=1.0)
        if best < least:
            told.append(f"{what} (best AUROC {100 * best:.1f}, below {100 * least:.0f})")
    if not told:
        return None
    return (
        f"No score is to be trusted here: none separates even {' and '.join(told)}. Novel inputs "
        "that look similar will mostly be accepted; take the score for ranking and review, not as "
        "a gate (the bounds are rules of thumb)."
    )
