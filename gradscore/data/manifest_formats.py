"""The formats of a manifest: rows from and to .csv, .parquet and .txt, whoever wrote them.

No file is believed about its size: lines and paths are of bounded length, and of a .parquet only
the columns that are wanted are read, in pieces, their texts kept once.
"""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from gradscore.data.labels import check_number, whole_number
from gradscore.errors import DataError
from gradscore.escapes import from_cell, to_cell
from gradscore.files import as_text, most_unfolded

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
COLUMNS = {
    "path": "path paths filepath file_path filename file_name file image images img image_path "
    "img_path imageid image_id id",
    "label": "label labels class class_id classid target targets class_name category y",
    "sha256": "sha256",
}
"""What the columns of a list may be called, in any case; of several the first is meant."""
LONGEST_LINE = 1 << 20
LONGEST_PATH = 4096
"""Characters that a system opens a file by."""
FEW_ROWS, ROWS_A_BYTE = 1_000_000, 8
"""A .parquet with more rows than both allow repeats a few values only to fill memory."""

COLUMN_KINDS = {
    "path": ("string",),
    "label": ("integer", "string", "floating", "null"),
    "sha256": ("string", "null"),
}
"""Of a .parquet; the labels themselves are then looked at one by one."""

Row = tuple[str, Any, str]
"""Path, label as it stands in the list, and SHA-256 or an empty text."""
Columns = dict[str, Sequence]


def row(path: str, label: object, digest: str, where: str) -> Row:
    """Return a row of a manifest.

    Args:
        path: Of the image.
        label: Its class, a number, its digits or a name; -1, None or empty: unknown.
        digest: SHA-256 of the file, or empty.
        where: What an error calls the row.

    Raises:
        DataError: If the path is empty or too long, or the label can be no class.
    """
    number = whole_number(label)
    if number is not None:
        check_number(number, label, where)
    if not path:
        raise DataError(f"Expected a path, got none in {where}.")
    if len(path) > LONGEST_PATH:
        raise DataError(
            f"Expected a path of at most {LONGEST_PATH} characters, got {len(path)} in {where}."
        )
    return path, label.strip() if isinstance(label, str) else label, digest


def _lines(file: BinaryIO, path: Path) -> Iterator[str]:
    """Yield the lines of a text file, never more of it than a line may be long."""
    utf_16 = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
    file.seek(0)
    # Bytes that are no UTF-8 are kept as they are: names of files may hold any.
    encoding, errors = ("utf-16", "strict") if utf_16 else ("utf-8-sig", "surrogateescape")
    with as_text(file, encoding, errors) as text:
        for place, line in enumerate(iter(lambda: text.readline(LONGEST_LINE), ""), 1):
            if len(line) == LONGEST_LINE:
                raise DataError(
                    f"Expected lines of less than {LONGEST_LINE} characters, got more in line "
                    f"{place} of {str(path)!r}."
                )
            yield line


def chosen_columns(names: Sequence[str], path: Path) -> dict[str, str]:
    """Return which columns hold path, label and SHA-256, of those that are there.

    Raises:
        DataError: If none holds paths.
    """
    by_name = {name.strip().casefold(): name for name in reversed(names)}
    chosen = {
        what: next((by_name[alias] for alias in aliases.split() if alias in by_name), None)
        for what, aliases in COLUMNS.items()
    }
    if chosen["path"] is None:
        raise DataError(
            f"Expected the columns path,label in {str(path)!r}, got {','.join(names) or 'none'}."
        )
    return {what: name for what, name in chosen.items() if name is not None}


def _read_csv(file: BinaryIO, path: Path) -> Iterator[Row]:
    lines = _lines(file, path)
    header = next(lines, "")
    delimiter = next((mark for mark in ",;\t" if mark in header), ",")
    rows = csv.DictReader(
        chain([header], lines), delimiter=delimiter, skipinitialspace=", " in header
    )
    columns = chosen_columns(rows.fieldnames or (), path)
    for entry in rows:
        where = f"line {rows.line_num} of {str(path)!r}"
        values = {what: entry[name] or "" for what, name in columns.items()}
        digest = values.get("sha256", "").strip()
        yield row(from_cell(values["path"]), values.get("label"), digest, where)


def _read_imglist(file: BinaryIO, path: Path) -> Iterator[Row]:
    for place, line in enumerate(_lines(file, path), 1):
        line = line.strip()
        if line:
            where = f"line {place} of {str(path)!r}"
            parts = _parts(line)
            if len(parts) != 2:
                raise DataError(f"Expected `path label`, got {line[:40]!r} in {where}.")
            yield row(parts[0].rstrip(", "), parts[1], "", where)


def _parts(line: str) -> list[str]:
    r"""Return path and label of a line; more or fewer parts where it is unclear.

    >>> [_parts(line) for line in ("a b.png 3", "a.png", "a.png\tcat\t0\t9", "a.png 0 1")]
    [['a b.png', '3'], ['a.png', ''], ['a.png', 'cat'], ['a.png', '0', '1']]
    """
    first, tab, rest = line.partition("\t")
    if tab and first.lower().endswith(IMAGE_SUFFIXES):  # further columns are boxes and the like
        return [first, rest.split("\t")[0]]
    if line.lower().endswith(IMAGE_SUFFIXES):  # a path alone
        return [line, ""]
    parts = line.rsplit(None, 1) if len(line.split(None, 1)) > 1 else line.rsplit(",", 1)
    words = parts[0].split()
    if len(words) > 1 and any(word.lower().endswith(IMAGE_SUFFIXES) for word in words[:-1]):
        return line.split()
    return parts


def _read_parquet(file: BinaryIO, path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        facts = pq.read_metadata(file)
        schema = facts.schema.to_arrow_schema()
        columns = chosen_columns(schema.names, path)
        kinds = parquet_kinds(facts, schema, columns, os.fstat(file.fileno()).st_size, path)
        # Texts stay a dictionary: one long text a million times over is then one text.
        texts = [name for name, kind in kinds.items() if kind == "string"]
        source = pq.ParquetFile(file, read_dictionary=texts, pre_buffer=False)
        place = 0
        for batch in source.iter_batches(columns=list(kinds)):
            values = {name: _values(batch.column(name), name, path) for name in kinds}
            empty = [None] * len(batch)
            for name, label, digest in zip(
                *(values.get(columns.get(n), empty) for n in COLUMN_KINDS), strict=True
            ):
                place += 1
                yield row(name or "", label, digest or "", f"row {place} of {str(path)!r}")
    except (pa.ArrowException, MemoryError) as error:
        raise DataError(f"Cannot read the manifest {str(path)!r}: {error}.") from error


def parquet_kinds(
    facts: Any, schema: Any, columns: dict[str, str], size: int, path: Path
) -> dict[str, str]:
    """Return the kind of each column of a .parquet that is wanted.

    Args:
        facts: What the file says of its rows.
        schema: Its columns.
        columns: Which of them are wanted, as :func:`chosen_columns` returns them.
        size: Its bytes.
        path: Its path.

    Raises:
        DataError: If one comes twice, its kind is another, or they would unfold to far more than
            the file.
    """
    import pyarrow as pa

    kinds = {}
    for what, name in columns.items():
        accepted = COLUMN_KINDS[what]
        found = [field.type for field in schema if field.name == name]
        plain = [one.value_type if pa.types.is_dictionary(one) else one for one in found]
        is_kind = {"string": lambda one: pa.types.is_string(one) or pa.types.is_large_string(one)}
        kinds[name] = next(
            (k for k in accepted if is_kind.get(k, getattr(pa.types, f"is_{k}"))(plain[0])), ""
        )
        if len(found) > 1 or not kinds[name]:
            raise DataError(
                f"Expected one column {name} of {' or '.join(accepted)} in {str(path)!r}, "
                f"got {', '.join(str(one)[:40] for one in found)}."
            )
    check_unfolded(facts, kinds, size, path)
    return kinds


def check_unfolded(facts: Any, kinds: Iterable[str], size: int, path: Path) -> None:
    """Raise where columns would unfold to far more than the file.

    Raises:
        DataError: If they would.
    """
    groups = map(facts.row_group, range(facts.num_row_groups))
    chunks = [group.column(place) for group in groups for place in range(facts.num_columns)]
    unfolded = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in kinds)
    many = facts.num_rows > max(FEW_ROWS, ROWS_A_BYTE * size)
    if many or unfolded > most_unfolded(size):
        raise DataError(
            f"Expected a list that unfolds to about its size, got {facts.num_rows:,} rows and "
            f"{unfolded:,} bytes in the {size:,} bytes of {str(path)!r}."
        )


def _values(column: Any, name: str, path: Path) -> list:
    """Return a column's values; texts are measured before they are repeated."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type) and len(column.dictionary):
        longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
        if longest > 4 * LONGEST_PATH:
            raise DataError(
                f"Expected texts of at most {4 * LONGEST_PATH} bytes in column {name} of "
                f"{str(path)!r}, got {longest}."
            )
    return column.to_pylist()


def _write_csv(file: BinaryIO, columns: Columns) -> None:
    names, *others = columns.values()
    with as_text(file) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(map(to_cell, names), *others, strict=True))


def _write_parquet(file: BinaryIO, columns: Columns) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file)


def _write_imglist(file: BinaryIO, columns: Columns) -> None:
    for name in columns["path"]:
        if name.splitlines() != [name] or name.strip() != name:
            raise DataError(f"Expected paths that fit a line of .txt, got {name!r}; write a .csv.")
    rows = zip(columns["path"], columns["label"], strict=True)
    file.write("".join(f"{name} {label}\n" for name, label in rows).encode())


READERS = {".csv": _read_csv, ".parquet": _read_parquet, ".txt": _read_imglist}
WRITERS = {".csv": _write_csv, ".parquet": _write_parquet, ".txt": _write_imglist}
