"""Write results as .csv, .parquet, .json, .md or .tex: the same rows give the same bytes.

The first three are for programs: every row and figure, as fractions. The last two are for
readers: methods x sets in percent (see :mod:`gradscore.pivot`). Files are written aside and
renamed, so that an interrupted command leaves no half table. Text is escaped for each format
(see :mod:`gradscore.escapes`).
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from gradscore.choices import ROW_ENDINGS, SCORE_ENDINGS
from gradscore.errors import InvalidArgument, RunError
from gradscore.escapes import printable, to_cell, to_markdown
from gradscore.evaluation import Evaluation, Row
from gradscore.files import as_text, require_replaceable, written_aside
from gradscore.norms import number_name
from gradscore.pivot import (
    LOWER_IS_BETTER,
    METRIC_NAMES,
    Pivot,
    intervals_text,
    is_evaluation,
    latex_lines,
    markdown_lines,
    pipes,
    pivot,
    plain_latex,
)
from gradscore.score_table import arrow_table, score_columns
from gradscore.scoring import Scores

Facts = dict[str, Any]
"""What a table says beside its rows."""


def write_evaluation(
    path: str | os.PathLike, evaluation: Evaluation, metrics: Sequence[str] | None = None
) -> None:
    """Write an evaluation's rows; all but .csv and .parquet say each ID set's accuracy.

    Args:
        path: Where to; the ending chooses the format, of :data:`ROW_ENDINGS`.
        evaluation: What to write.
        metrics: Figures that .md and .tex show, of :data:`gradscore.choices.METRICS`; by
            default AUROC and FPR95.

    Raises:
        InvalidArgument: If the ending is unknown.
        RunError: If the file cannot be written.
    """
    shares = {name: figure.share for name, figure in evaluation.accuracies.items()}
    facts = {"intervals": evaluation.intervals} if evaluation.intervals else {}
    notes = [
        f"ID accuracy{f' on {name}' if len(shares) > 1 else ''}: {figure}."
        for name, figure in evaluation.accuracies.items()
        if figure.labelled
    ]
    write_rows(path, evaluation.rows, metrics, notes, id_accuracy=shares, **facts)


def write_rows(
    path: str | os.PathLike,
    rows: Sequence[Row],
    metrics: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    **facts: Any,
) -> None:
    """Write rows with equal keys as a table.

    Args:
        path: Where to; the ending chooses the format, of :data:`ROW_ENDINGS`.
        rows: The rows; their keys are the columns.
        metrics: As of :func:`write_evaluation`.
        notes: Sentences that .md and .tex say beside what the figures are.
        **facts: What a .json holds beside the rows.

    Raises:
        InvalidArgument: If the ending is unknown or there is no row.
        RunError: If the file cannot be written.
    """
    if not rows:
        raise InvalidArgument("Expected at least one row to write, got none.")
    ending = check_ending(path, ROW_ENDINGS)
    with written_aside(path) as file:
        if ending in _FOR_READERS:
            _FOR_READERS[ending](file, rows, notes, metrics)
        else:
            _FOR_PROGRAMS[ending](file, rows, facts)


def write_scores(
    path: str | os.PathLike, blocks: Iterable[Scores], class_names: Sequence[str] | None = None
) -> int:
    """Write one row an input: set, path, label, predicted, and one column a spec.

    ``label`` and ``predicted`` are class numbers; ``predicted_name`` is there with class names.

    Blocks are written as they come, so that memory does not grow with the sets.

    Args:
        path: Where to; the ending chooses the format, of :data:`SCORE_ENDINGS`.
        blocks: Scores of consecutive rows, equal columns.
        class_names: The classes' names, where they are known.

    Returns:
        The number of rows written.

    Raises:
        InvalidArgument: If the ending is unknown or there is no block.
        RunError: If the file cannot be written.
    """
    write = {".csv": _csv_scores, ".parquet": _parquet_scores}
    ending = check_ending(path, SCORE_ENDINGS)
    written = 0

    def counted() -> Iterator[Scores]:
        nonlocal written
        for block in blocks:
            written += len(block)
            yield block

    with written_aside(path) as file:
        write[ending](file, counted(), class_names)
        if not written:
            raise InvalidArgument("Expected at least one row to write, got none.")
    return written


def check_ending(path: str | os.PathLike, endings: Iterable[str]) -> str:
    """Return the ending of ``path``, in lower case.

    Raises:
        InvalidArgument: If it is not one of ``endings``.
    """
    ending = Path(path).suffix.lower()
    if ending not in endings:
        raise InvalidArgument(
            f"Expected a file ending in {', '.join(endings)}, got {os.fspath(path)!r}."
        )
    return ending


def check_output(path: str | os.PathLike, endings: Iterable[str]) -> None:
    """Refuse a result that could not be written, before anything is computed for it.

    Raises:
        InvalidArgument: If its ending is not one of ``endings``.
        RunError: If its folder is absent or may not be written, or it is no file to replace.
    """
    check_ending(path, endings)
    try:
        require_replaceable(path)
    except OSError as error:
        raise RunError(f"Cannot write {os.fspath(path)}: {error.strerror}.") from None


def _text(value: Any) -> str:
    if value is None:
        return ""
    return number_name(value) if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    return to_cell(value) if isinstance(value, str) else _text(value)


def _csv(file: BinaryIO, rows: Sequence[Row], facts: Facts) -> None:
    with as_text(file) as texts:
        writer = csv.writer(texts, lineterminator="\n")
        writer.writerow(map(to_cell, rows[0]))
        writer.writerows(map(_cell, row.values()) for row in rows)


def _json(file: BinaryIO, rows: Sequence[Row], facts: Facts) -> None:
    def valid(value: Any) -> Any:
        # JSON knows no infinity.
        return "inf" if value == math.inf else value

    table = [{key: valid(value) for key, value in row.items()} for row in rows]
    text = json.dumps({**facts, "rows": table}, indent=1, allow_nan=False)
    file.write(f"{text}\n".encode())


def _markdown(
    file: BinaryIO, rows: Sequence[Row], notes: Sequence[str], metrics: Sequence[str] | None
) -> None:
    lines = [f"{to_markdown(note)}\n" for note in notes]
    if is_evaluation(rows):
        table = pivot(rows, metrics)
        lines += [f"{line}\n" for line in _about(rows, table, "Percent [95% interval]")]
        lines += markdown_lines(table)
    else:
        lines += [pipes([to_markdown(name) for name in rows[0]]), pipes([":--"] * len(rows[0]))]
        lines += [pipes([to_markdown(_text(v)) for v in row.values()]) for row in rows]
    file.write(("\n".join(lines) + "\n").encode())


def _latex(
    file: BinaryIO, rows: Sequence[Row], notes: Sequence[str], metrics: Sequence[str] | None
) -> None:
    notes = [*notes, "Needs \\usepackage{booktabs}."]
    if is_evaluation(rows):
        table = pivot(rows, metrics)
        notes = [*notes[:-1], *_about(rows, table, "Percent"), notes[-1]]
        body = latex_lines(table)
    else:
        body = plain_latex(list(rows[0]), [[_text(v) for v in row.values()] for row in rows])
    lines = [*(f"% {printable(note)}" for note in notes), *body]
    file.write(("\n".join(lines) + "\n").encode())


def _about(rows: Sequence[Row], table: Pivot, unit: str) -> list[str]:
    """Return what the intervals are, and what the figures are."""
    intervals = intervals_text(rows)
    return [*([intervals] if intervals else []), _legend(table, unit)]


def _legend(table: Pivot, unit: str) -> str:
    lower = [METRIC_NAMES[name] for name in table.metrics if name in LOWER_IS_BETTER]
    higher = [METRIC_NAMES[name] for name in table.metrics if name not in LOWER_IS_BETTER]
    parts = [unit]
    parts += [f"higher {', '.join(higher)} is better"] if higher else []
    parts += [f"lower {', '.join(lower)} is better"] if lower else []
    return "; ".join(parts) + ". Best in bold."


def _parquet(file: BinaryIO, rows: Sequence[Row], facts: Facts) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {name: _typed(pyarrow, name, [row[name] for row in rows]) for name in rows[0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), file)


def _typed(pyarrow: Any, name: str, values: list) -> Any:
    """Return a column whose type does not depend on which of its values are missing."""
    texts = all(value is None for value in values) and name in {"layers", "target", "fit"}
    numbers = all(value is None or isinstance(value, int | float) for value in values)
    whole = numbers and any(values) and not any(isinstance(value, float) for value in values)
    kind = pyarrow.int64() if whole else pyarrow.float64()
    return pyarrow.array(values, kind if numbers and not texts else pyarrow.string())


_FOR_PROGRAMS = {".csv": _csv, ".json": _json, ".parquet": _parquet}
_FOR_READERS = {".md": _markdown, ".tex": _latex}
_TEXTS = ("set", "path", "predicted_name")


def _csv_scores(
    file: BinaryIO, blocks: Iterator[Scores], class_names: Sequence[str] | None
) -> None:
    with as_text(file) as texts:
        writer = csv.writer(texts, lineterminator="\n")
        for place, block in enumerate(blocks):
            columns = score_columns(block, class_names)
            if not place:
                writer.writerow(map(to_cell, columns))
            cells = [
                map(to_cell, column) if name in _TEXTS else column
                for name, column in columns.items()
                if name not in block.columns
            ]
            numbers = [[repr(v) for v in c.tolist()] for c in block.columns.values()]
            writer.writerows(zip(*cells, *numbers, strict=True))


def _parquet_scores(
    file: BinaryIO, blocks: Iterator[Scores], class_names: Sequence[str] | None
) -> None:
    import pyarrow.parquet

    writer = None
    try:
        for block in blocks:
            table = arrow_table(score_columns(block, class_names))
            writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
