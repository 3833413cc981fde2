"""How figures look: marks beside colours, and how names are written in them.

Readable in grey, too: neighbours differ in their marks, their hatches and their strokes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gradscore.escapes import printable
from gradscore.palette import OODS, TONES, set_numbers, tone_names

INK = "#1a1a1a"
FILLS = tuple(tone.fill for tone in OODS)
SCORES = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#1a1a1a")
"""Of lines that are scores and not sets (Okabe & Ito)."""
SOFT = "#8d979f"
"""Of lines that only help to read."""
MEAN = "#6d6d6d"
"""Fill of the bar that is the mean of the others."""
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "++", "oo")
"""One more than fills, so that neighbours differ in both and 56 bars in one of them."""
MARKERS = ("s", "D", "^", "v", "P", "X", "*")
STYLES = ("-", "--", "-.", ":")
METRIC_LABELS = {
    "auroc": "AUROC (%), higher is better",
    "fpr95": "FPR95 (%), lower is better",
}
_ROLES = {"id": "ID", "ood": "OOD", "fit": "to fit to"}


@dataclass(frozen=True)
class Look:
    """How one set is drawn, in every figure.

    Attributes:
        label: Its name with its role.
        is_id: Whether its role is ID.
        color: Of its lines.
        fill: Of its areas.
        style: Of its strokes.
        marker: Of its points.
        hatch: Of its bars.
    """

    label: str
    is_id: bool
    color: str
    fill: str
    style: str
    marker: str
    hatch: str


def set_looks(roles: Mapping[str, str | None]) -> dict[str, Look]:
    """Return how each set is drawn.

    Args:
        roles: Every set of a run, in the run's order, to its role; not only those drawn.
    """
    numbers, tones = set_numbers(roles), tone_names(roles)
    looks = {}
    for name, role in roles.items():
        tone, place, is_id = TONES[tones[name]], numbers[name], role == "id"
        looks[name] = Look(
            label=set_label(name, role),
            is_id=is_id,
            color=tone.line,
            fill=tone.fill,
            style=STYLES[place % len(STYLES)],
            marker="o" if is_id else MARKERS[place % len(MARKERS)],
            hatch=HATCHES[place % len(HATCHES)],
        )
    return looks


def as_text(name: str) -> str:
    """Return a name as a figure shows it: no formula, and not hidden for its first character."""
    shown = printable(name).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def set_label(name: str, role: str | None) -> str:
    """Return a set's name with its role.

    >>> set_label("noise", "ood"), set_label("more", None)
    ('noise (OOD)', 'more')
    """
    return as_text(f"{name} ({_ROLES[role]})" if role in _ROLES else name)
