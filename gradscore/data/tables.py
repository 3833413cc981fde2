"""Images that lie in .parquet tables themselves, as data sets of Hugging Face hold them."""

import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gradscore.data.folders import paths_of
from gradscore.data.labels import (
    UNKNOWN,
    Labels,
    Wanted,
    class_numbers,
    named_classes,
    whole_number,
)
from gradscore.data.manifest_formats import FEW_ROWS, check_unfolded
from gradscore.data.pictures import Opened, decode_image
from gradscore.errors import DataError
from gradscore.files import open_regular

IMAGE_COLUMNS = ("image", "img", "picture", "image_bytes", "bytes", "content", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target", "category")
GROUP_BYTES = 1 << 31
"""A group of rows is read at once, and may unfold to so much."""
KEPT_GROUPS = 2
NO_VALUE = (KeyError, ValueError, OverflowError, ImportError)
"""What Arrow raises besides its own: for dates that Python has not, or without their library."""


class Group(NamedTuple):
    """A group of rows of a file, the smallest piece that is read."""

    path: Path
    number: int
    rows: int


class TableImages:
    """Encoded images in a column of .parquet files; the groups of rows read last are kept."""

    def __init__(self, groups: Sequence[Group], column: str, names: Sequence[str]) -> None:
        self.groups, self.column, self.names = groups, column, names
        self._starts = np.cumsum([0, *(group.rows for group in groups)]).tolist()
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the rows to be read again by the process that receives this."""
        return {**self.__dict__, "_kept": OrderedDict()}

    def read(self, place: int) -> Image.Image:
        """Return the picture in a row."""
        number = bisect_right(self._starts, place) - 1
        if number not in self._kept:
            self._kept[number] = _read_group(self.groups[number], self.column)
            if len(self._kept) > KEPT_GROUPS:
                self._kept.popitem(last=False)
        content = self._kept[number][place - self._starts[number]].as_py()
        if content is None:
            raise DataError(
                f"{self.names[place]}: the row holds no image, at most a path to one; "
                "give a list of those paths."
            )
        return decode_image(content, self.names[place])


def holds_images(text: str) -> bool:
    """Return whether ``text`` names .parquet files with images in them, not a list of paths."""
    if not text.lower().endswith(".parquet"):
        return False
    try:
        return _image_column(_schema(paths_of(text, "file")[0])) is not None
    except DataError:
        return False  # reported by what opens lists


def open_tables(text: str, wanted: Wanted) -> Opened:
    """Open the images of .parquet files.

    Args:
        text: A path, with at most one ``{000..009}``, or with wildcards.
        wanted: What is known of the model.

    Raises:
        DataError: If a file is absent, damaged or another kind of table than the first.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = paths_of(text, "file")
    schema = _schema(paths[0])
    column = _image_column(schema)
    label_column = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    groups, names, labels, contents = [], [], [], []
    for path in paths:
        try:
            with open_regular(path) as file:
                _require_once(pq.read_schema(file), {column, label_column} - {None}, path)
                table = pq.ParquetFile(file, read_dictionary=_texts(path, label_column))
                if _image_column(table.schema_arrow) != column:
                    raise DataError(f"Expected a column of images {column!r} in {str(path)!r}.")
                facts, size = table.metadata, os.fstat(file.fileno()).st_size
                if facts.num_rows > max(FEW_ROWS, size):
                    raise DataError(f"Expected an image a row in {str(path)!r}, got {size} bytes.")
                groups += [_group(path, facts, number) for number in range(facts.num_row_groups)]
                if label_column:
                    check_unfolded(facts, [label_column], size, path)
                    labels += _labels(table, label_column)
        except (pa.ArrowException, OSError, *NO_VALUE) as error:
            raise DataError(f"Cannot read {str(path)!r}: {error}") from error
        names += [f"{path.name}/{row}" for row in range(facts.num_rows)]
        contents += [str(facts.row_group(n).total_byte_size) for n in range(facts.num_row_groups)]
    if not names:
        raise DataError(f"No rows in {text!r}.")
    numbers, notice = _numbers(labels, schema, label_column, wanted)
    reader = TableImages(groups, column, names)
    return Opened(names, numbers, reader, whole=contents, notices=[notice])


def _require_once(schema: Any, columns: Iterable[str], path: Path) -> None:
    for name in columns:
        if schema.names.count(name) > 1:
            raise DataError(f"Expected {name!r} once in {str(path)!r}, got it twice.")


def _texts(path: Path, column: str | None) -> list[str]:
    """Return the column where it holds texts: they are kept once, however often they come."""
    import pyarrow.types as kinds

    kind = _schema(path).field(column).type if column else None
    is_text = (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary)
    return [column] if column and any(check(kind) for check in is_text) else []


def _labels(table: Any, column: str) -> list:
    """Return a column's values; a text that comes many times over is one object.

    Lists and structures, which are no labels, are not read: an empty list stands for them all.
    """
    import pyarrow.types as kinds

    kind, labels = table.schema_arrow.field(column).type, []
    if kinds.is_nested(kind) or kinds.is_fixed_size_binary(kind):
        return [[]]
    for batch in table.iter_batches(columns=[column]):
        values = batch.column(0)
        if kinds.is_dictionary(values.type):
            known = values.dictionary.to_pylist()
            places = values.indices.to_pylist()
            labels += [None if place is None else known[place] for place in places]
        else:
            labels += values.to_pylist()
    return labels


def _schema(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(path) as file:
            return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"Cannot read {str(path)!r}: {error}") from error


def _image_column(schema: Any) -> str | None:
    """Return the column with encoded images: a structure with ``bytes``, or plain bytes."""
    import pyarrow.types as kinds

    def is_bytes(kind: Any) -> bool:
        return kinds.is_binary(kind) or kinds.is_large_binary(kind)

    def holds(kind: Any) -> bool:
        return kinds.is_struct(kind) and any(f.name == "bytes" and is_bytes(f.type) for f in kind)

    known = [field for name in IMAGE_COLUMNS for field in schema if field.name == name]
    found = [field.name for field in (*known, *schema) if holds(field.type)]
    found += [field.name for field in known if is_bytes(field.type)]
    return found[0] if found else None


def _group(path: Path, facts: Any, number: int) -> Group:
    group = facts.row_group(number)
    if group.total_byte_size > GROUP_BYTES:
        raise DataError(
            f"Expected groups of rows of at most {GROUP_BYTES >> 30} GiB in {str(path)!r}, got "
            f"{group.total_byte_size / (1 << 30):.1f} GiB; write it with smaller row groups."
        )
    return Group(path, number, group.num_rows)


def _read_group(group: Group, column: str) -> Any:
    """Return the encoded images of a group; one that comes many times over is held once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_regular(group.path) as file:
            kind = pq.read_schema(file).field(column).type
            leaf = f"{column}.bytes" if pa.types.is_struct(kind) else column
            table = pq.ParquetFile(file, pre_buffer=False, read_dictionary=[leaf])
            values = table.read_row_group(group.number, columns=[leaf])[column].combine_chunks()
            return values.field("bytes") if pa.types.is_struct(values.type) else values
    except (pa.ArrowException, OSError, *NO_VALUE) as error:
        raise DataError(f"Cannot read {str(group.path)!r}: {error}") from error


def _numbers(labels: list, schema: Any, column: str | None, wanted: Wanted) -> Labels:
    """Return class numbers; by the names that the table has for them, where the model has them."""
    if column is None:
        return Labels(None)
    if any(isinstance(label, list | dict) for label in labels):
        return Labels(None, f"labels are unknown: {column} holds several values an image")
    names = _names(schema, column)
    numbers = {label: whole_number(label) for label in dict.fromkeys(labels)}
    counted = all(number is not None and number >= UNKNOWN for number in numbers.values())
    if wanted.class_names is not None and names and counted:
        found, _ = named_classes(names, wanted.class_names, None, "labels")
        if len(found) == len(names):
            places = [found.get(_at(names, numbers[label])) for label in labels]
            return Labels(class_numbers(places).numbers, f"labels of {column} by their names")
    return class_numbers(labels, wanted.class_names, wanted.classes)


def _at(names: Sequence[str], label: int) -> str | None:
    return names[label] if 0 <= label < len(names) else None


def _names(schema: Any, column: str) -> list[str]:
    """Return what Hugging Face's metadata call the classes of a column, or nothing."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
