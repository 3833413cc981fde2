"""Rows of a measurement as CSV, written alike by every script."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a new file, one column a field of the first."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file, which is made where it is not there.

    Raises:
        ValueError: If the file has other columns.
    """
    if not path.exists():
        write(path, [row])
        return
    with path.open(newline="") as file:
        columns = next(csv.reader(file), [])
    if columns != list(row):
        raise ValueError(
            f"Expected the columns {', '.join(row)} in {path}, got {', '.join(columns)}; "
            "write to another file."
        )
    with path.open("a", newline="") as file:
        csv.DictWriter(file, list(row), lineterminator="\n").writerow(row)
