"""What a score is called beside others, in tables and figures."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradscore.methods.base import OPTIONS
from gradscore.norms import number_name

_SYMBOLS = {"temperature": "T", "two_sided": "two-sided"}
"""What a setting is called, where it is not by its own name."""


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
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], settings: Sequence[str] = OPTIONS
) -> Callable[[Mapping[str, Any]], str]:
    """Return what names a row: its ``names`` as they are, then the settings in which rows differ.

    Args:
        rows: All rows of a table or figure.
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
