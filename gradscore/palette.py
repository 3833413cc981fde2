"""Which colour a set has: the same in every figure, and on the page of a report.

A set's colour follows from its place among all sets of its run with its role, in the order in
which they were recorded. It does not depend on which of them are drawn. OOD colours differ in
lightness, too; on the page each is text as well, and keeps a contrast of 4.5 with its ground.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tone:
    """One colour.

    Attributes:
        line: Of lines and texts on a light ground.
        fill: Of areas on a light ground.
        dark_line: Of lines and texts on a dark ground.
        dark_fill: Of areas on a dark ground.
    """

    line: str
    fill: str
    dark_line: str
    dark_fill: str


OODS = (
    Tone("#b4470a", "#f3c9ab", "#ffa06b", "#56331d"),  # orange
    Tone("#3a7d2c", "#c3e0ba", "#8fd07d", "#274521"),  # green
    Tone("#7b4ea3", "#dccbea", "#c9a6ea", "#432f56"),  # purple
    Tone("#8a6a00", "#eadb9e", "#e0c04f", "#4a3d12"),  # gold
    Tone("#b02a68", "#f2c3d8", "#f58fbd", "#562339"),  # magenta
    Tone("#0b7676", "#b3dcdc", "#63cccc", "#164343"),  # teal
    Tone("#6b5344", "#dccfc6", "#cdb09c", "#42342b"),  # brown
)
TONES = {
    "id": Tone("#0b5fa5", "#b5d4ee", "#74b9f2", "#24425c"),
    "other": Tone("#5d6670", "#cfd5da", "#b3bcc4", "#3a434b"),
    **{f"ood{place}": tone for place, tone in enumerate(OODS)},
}
"""Name of a colour to the colour: ID sets, sets of neither kind, and OOD sets in their order."""


def set_numbers(roles: Mapping[str, str | None]) -> dict[str, int]:
    """Return each set's place among those of its kind.

    >>> set_numbers({"test": "id", "signs": "ood", "train": None, "noise": "ood"})
    {'test': 0, 'signs': 0, 'train': 0, 'noise': 1}
    """
    seen: dict[str, int] = {}
    numbers = {}
    for name, role in roles.items():
        kind = _kind(role)
        numbers[name] = seen.get(kind, 0)
        seen[kind] = numbers[name] + 1
    return numbers


def tone_names(roles: Mapping[str, str | None]) -> dict[str, str]:
    """Return what the colour of each set is called, in :data:`TONES`.

    Args:
        roles: Every set of a run, in the run's order, to its role.

    >>> tone_names({"test": "id", "signs": "ood", "train": None, "noise": "ood"})
    {'test': 'id', 'signs': 'ood0', 'train': 'other', 'noise': 'ood1'}
    """
    numbers = set_numbers(roles)
    return {
        name: f"ood{numbers[name] % len(OODS)}" if role == "ood" else _kind(role)
        for name, role in roles.items()
    }


def _kind(role: str | None) -> str:
    return role if role in ("id", "ood") else "other"
