"""How figures look: colours, marks, and how names and settings are written in them.

Readable in grey: ID is dark, OOD is lighter, and neighbours differ in their marks too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradscore.escapes import printable
from gradscore.norms import number_name

INK = "#1a1a1a"
SHADES = ("#1f6fb2", "#c4551c", "#5f9e3f", "#8a63a6", "#9c8412", "#4aa3a3", "#777777")
FILLS = ("#a9cbe6", "#f0bfa3", "#bcdcab", "#d3c2e0", "#e3d590", "#b5dede", "#d9d9d9")
MEAN = "#6d6d6d"
"""Fill of the bar that is the mean of the others."""
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "++", "oo")
"""One more than fills, so that neighbours differ in both and 56 bars in one of them."""
MARKERS = "osD^vPX*"
STYLES = ("-", "--", "-.", ":")
METRIC_LABELS = {
    "auroc": "AUROC (%), higher is better",
    "fpr95": "FPR95 (%), lower is better",
}
SETTINGS = (
    *("layers", "p", "temperature", "target", "epsilon", "fit"),
    *("k", "dimension", "percentile", "two_sided", "clip"),
)
"""Options of a score, in the order in which names show them."""
_SYMBOLS = {"temperature": "T", "two_sided": "two-sided"}
"""What a setting is called in a figure, where it is not by its own name."""
_ROLES = {"id": "ID", "ood": "OOD", "fit": "to fit to"}


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


def setting_text(option: str, value: Any) -> str:
    """Return a setting with its name.

    >>> setting_text("temperature", 1000.0), setting_text("p", math.inf)
    ('T = 1000', 'p = ∞')
    """
    if isinstance(value, bool):
        value = "yes" if value else "no"
    elif isinstance(value, int | float):
        value = "∞" if value == math.inf else number_name(value)
    return f"{_SYMBOLS.get(option, option)} = {value}"


def row_namer(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], settings: Sequence[str] = SETTINGS
) -> Callable[[Mapping[str, Any]], str]:
    """Return what names a row: its ``names`` as they are, then the settings in which rows differ.

    Args:
        rows: All rows of a figure.
        names: Columns that name a row without saying which they are, such as ``method``; those
            in which the rows do not differ are left out, but for the first.
        settings: Columns that are named beside their values; of rows of one method alone, those
            in which they differ.
    """

    def several(key: str, among: Sequence[Mapping[str, Any]]) -> bool:
        return len({row[key] for row in among if row.get(key) is not None}) > 1

    shown = [key for key in names if several(key, rows)] or list(names[:1])
    rivals: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        rivals.setdefault(row.get("method"), []).append(row)
    differing = {
        method: [key for key in settings if several(key, among)]
        for method, among in rivals.items()
    }

    def name(row: Mapping[str, Any]) -> str:
        words = [str(row[key]) for key in shown if row.get(key) is not None]
        words += [
            setting_text(key, row[key])
            for key in differing[row.get("method")]
            if key not in shown and row.get(key) is not None
        ]
        return ", ".join(words)

    return name
