"""Decisions on images as a file that grows: .csv, .parquet or .jsonl, a row an image."""

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from gradscore.choices import PREDICTION_ENDINGS
from gradscore.detector.file import DetectorInfo
from gradscore.detector.prediction import Predictions
from gradscore.escapes import to_cell
from gradscore.files import written_aside
from gradscore.tables import check_ending

NAME = "predicted_name"
"""Column with the name of the predicted class, where the classes' names are known."""
TOGETHER = 4096
"""Rows of a .parquet that are stored together."""


class _Format(Protocol):
    def write(self, columns: dict[str, list[Any]]) -> None:
        """Write some rows."""

    def close(self) -> None:
        """Finish the file, which stays open."""


class PredictionFile:
    """Rows of decisions, written as they come.

    Args:
        file: Where to.
        ending: One of :data:`~gradscore.choices.PREDICTION_ENDINGS`.
        info: The detector, which knows the classes' names.

    Attributes:
        rows: How many were written.
        kept: How many the finished file holds.
        failed: Whether one could not be written.
    """

    def __init__(self, file: BinaryIO, ending: str, info: DetectorInfo) -> None:
        self._file, self._names = file, info.class_names
        self._columns = columns_of(info)
        self._format = _FORMATS[ending](file, self._columns)
        self.rows = self.kept = 0
        self.failed = False

    def add(self, found: Predictions) -> None:
        """Write the decisions on some images."""
        if not len(found):
            return
        predicted = found.predicted.tolist()
        names = [] if self._names is None else [[self._names[k] for k in predicted]]
        numbers = (values.tolist() for values in (found.score, found.p_value, found.accepted))
        values = (found.path, predicted, *names, *numbers)
        try:
            self._format.write(dict(zip(self._columns, values, strict=True)))
            self._file.flush()
        except OSError:
            self.failed = True
            raise
        self.rows += len(found)

    def close(self) -> None:
        """Finish the file, which stays open."""
        self._format.close()


def columns_of(info: DetectorInfo) -> tuple[str, ...]:
    """Return the columns of a detector's decisions."""
    names = () if info.class_names is None else (NAME,)
    return ("path", "predicted", *names, "score", "p_value", "accepted")


@contextmanager
def written_predictions(path: str | os.PathLike, info: DetectorInfo) -> Iterator[PredictionFile]:
    """Yield what takes decisions; whatever ends the work, those that came are kept.

    Args:
        path: Where to; the ending chooses the format.
        info: The detector.

    Raises:
        InvalidArgument: If the ending is unknown.
        RunError: If the file cannot be written.
    """
    ending = check_ending(path, PREDICTION_ENDINGS)
    stopped: BaseException | None = None
    with written_aside(Path(path)) as file:
        rows = PredictionFile(file, ending, info)
        try:
            yield rows
        except BaseException as error:
            if not rows.rows or rows.failed:
                raise
            stopped = error
        rows.close()
    rows.kept = rows.rows
    if stopped is not None:
        raise stopped


@contextmanager
def streamed_predictions(file: BinaryIO, info: DetectorInfo) -> Iterator[PredictionFile]:
    """Yield what takes decisions, and gives them on at once as JSON lines.

    Args:
        file: Where to, such as a pipe; it stays open.
        info: The detector.
    """
    yield PredictionFile(file, ".jsonl", info)


class _Csv:
    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file = file
        self._write([names])

    def _write(self, rows: Any) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue().encode(errors="backslashreplace"))

    def write(self, columns: dict[str, list[Any]]) -> None:
        self._write(zip(*([*map(_cell, values)] for values in columns.values()), strict=True))

    def close(self) -> None:
        pass


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return to_cell(value) if isinstance(value, str) else repr(value)


class _JsonLines:
    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file = file

    def write(self, columns: dict[str, list[Any]]) -> None:
        for row in zip(*columns.values(), strict=True):
            line = json.dumps(dict(zip(columns, row, strict=True)), allow_nan=False)
            self._file.write(f"{line}\n".encode())

    def close(self) -> None:
        pass


class _Parquet:
    def __init__(self, file: BinaryIO, names: Sequence[str]) -> None:
        self._file, self._writer = file, None
        self._waiting: dict[str, list[Any]] = {name: [] for name in names}

    def write(self, columns: dict[str, list[Any]]) -> None:
        for name, values in columns.items():
            self._waiting[name] += values
        if len(self._waiting["path"]) >= TOGETHER:
            self._flush()

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        columns = dict(self._waiting)
        texts = columns.keys() & {"path", NAME}
        for name in texts:
            # Arrow's text is UTF-8; other bytes of file names are written as Python shows them.
            encoded = (value.encode(errors="backslashreplace") for value in columns[name])
            columns[name] = [text.decode() for text in encoded]
        kinds = {"predicted": pyarrow.int64(), "accepted": pyarrow.bool_()}
        kinds |= dict.fromkeys(texts, pyarrow.string())
        schema = pyarrow.schema([(name, kinds.get(name, pyarrow.float64())) for name in columns])
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._file, schema)
        self._writer.write_table(pyarrow.table(columns, schema=schema))
        self._waiting = {name: [] for name in columns}

    def close(self) -> None:
        if self._waiting["path"] or self._writer is None:
            self._flush()
        self._writer.close()


_FORMATS = {".csv": _Csv, ".parquet": _Parquet, ".jsonl": _JsonLines}
