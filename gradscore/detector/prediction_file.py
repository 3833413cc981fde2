"""Decisions on images as a file that grows: .csv, .parquet or .jsonl, a row an image."""

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from gradscore.choices import PREDICTION_ENDINGS
from gradscore.detector.file import DetectorInfo
from gradscore.detector.prediction import Predictions
from gradscore.escapes import to_cell
from gradscore.files import written_aside
from gradscore.tables import check_ending

COLUMNS = ("path", "predicted", "score", "p_value", "accepted")
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
        self._file, self._format = file, _FORMATS[ending](file)
        self._names = info.class_names
        self.rows = self.kept = 0
        self.failed = False

    def add(self, found: Predictions) -> None:
        """Write the decisions on some images."""
        if not len(found):
            return
        predicted: list[Any] = found.predicted.tolist()
        if self._names is not None:
            predicted = [self._names[k] for k in predicted]
        numbers = (values.tolist() for values in (found.score, found.p_value, found.accepted))
        try:
            self._format.write(dict(zip(COLUMNS, (found.path, predicted, *numbers), strict=True)))
            self._file.flush()
        except OSError:
            self.failed = True
            raise
        self.rows += len(found)

    def close(self) -> None:
        """Finish the file, which stays open."""
        self._format.close()


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
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._write([COLUMNS])

    def _write(self, rows: Any) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue().encode(errors="backslashreplace"))

    def write(self, columns: dict[str, list[Any]]) -> None:
        path, predicted, score, p_value, accepted = columns.values()
        names = ([to_cell(str(value)) for value in values] for values in (path, predicted))
        numbers = ([repr(value) for value in values] for values in (score, p_value))
        told = ["true" if value else "false" for value in accepted]
        self._write(zip(*names, *numbers, told, strict=True))

    def close(self) -> None:
        pass


class _JsonLines:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, columns: dict[str, list[Any]]) -> None:
        for row in zip(*columns.values(), strict=True):
            line = json.dumps(dict(zip(COLUMNS, row, strict=True)), allow_nan=False)
            self._file.write(f"{line}\n".encode())

    def close(self) -> None:
        pass


class _Parquet:
    def __init__(self, file: BinaryIO) -> None:
        self._file, self._writer = file, None
        self._waiting: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def write(self, columns: dict[str, list[Any]]) -> None:
        for name, values in columns.items():
            self._waiting[name] += values
        if len(self._waiting["path"]) >= TOGETHER:
            self._flush()

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        columns = dict(self._waiting)
        named = not any(isinstance(value, int) for value in columns["predicted"])
        for name in ("path", "predicted") if named else ("path",):
            # Arrow's text is UTF-8; other bytes of file names are written as Python shows them.
            texts = (value.encode(errors="backslashreplace") for value in columns[name])
            columns[name] = [text.decode() for text in texts]
        kinds = [pyarrow.string(), pyarrow.string() if named else pyarrow.int64()]
        kinds += [pyarrow.float64(), pyarrow.float64(), pyarrow.bool_()]
        schema = pyarrow.schema(list(zip(COLUMNS, kinds, strict=True)))
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._file, schema)
        self._writer.write_table(pyarrow.table(columns, schema=schema))
        self._waiting = {name: [] for name in COLUMNS}

    def close(self) -> None:
        if self._waiting["path"] or self._writer is None:
            self._flush()
        self._writer.close()


_FORMATS = {".csv": _Csv, ".parquet": _Parquet, ".jsonl": _JsonLines}
