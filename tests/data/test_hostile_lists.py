"""Lists, archives and pictures made to hang, fill memory or reach outside: one line each."""

import csv
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradscore.data import manifest_formats
from gradscore.data.declared import problems, read_declaration
from gradscore.data.manifest import read_manifest
from gradscore.errors import DataError


def refused(function, *arguments, match):
    """Check that a call ends in one line of error."""
    with pytest.raises(DataError, match=match) as caught:
        function(*arguments)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


LISTS = {
    "a label of 2^63": (
        b"path,label\na.png,9223372036854775808\n",
        "below 2.63, got '92233720368",
    ),
    "a label of 5,000 digits": (b"path,label\na.png," + b"9" * 5000, "got '999"),
    "a label that is no number": (b"path,label\na.png,nan\n", "got 'nan'"),
    "a label with a fraction": (b"path,label\na.png,1.5\n", "got '1.5'"),
    "a path of NULs": (b"path,label\na\0b.png,1\n", "Expected paths inside|line contains NUL"),
    "a path too long": (b"path,label\n" + b"a" * 5000 + b",1\n", "at most 4096 characters, got"),
    "a field too long": (b'path,label\n"' + b"a\n" * 10**5 + b'",1\n', "field larger than field"),
    "no line break": (
        b"path,label\n" + b"\0" * (1 << 20),
        "lines of less than 1048576 characters",
    ),
    "a header too long": (b"path," * (1 << 18), "lines of less than 1048576 characters"),
    "short rows": (b"label,path\n1\n", "Expected a path, got none"),
}


@pytest.mark.parametrize("name", LISTS)
def test_hostile_lists_are_refused(tmp_path, name):
    content, told = LISTS[name]
    (tmp_path / "l.csv").write_bytes(content)
    refused(read_manifest, tmp_path / "l.csv", match=told)


def test_a_sparse_list_of_a_terabyte_is_refused_at_its_first_line(tmp_path):
    for name in ("l.csv", "l.txt"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 1 << 40)
        refused(read_manifest, tmp_path / name, match="lines of less than 1048576 characters")


@pytest.mark.parametrize("ending", ["csv", "txt", "parquet"])
def test_a_list_that_is_no_file_is_not_waited_for(tmp_path, ending):
    os.mkfifo(tmp_path / f"l.{ending}")
    refused(read_manifest, tmp_path / f"l.{ending}", match="No manifest at")


PATHS = pa.array(["a.png", "b.png"])
TABLES = {
    "a nested path": ({"path": [["a"], ["b"]]}, "one column path of string in .*, got list"),
    "paths of bytes": ({"path": [b"a", b"b"]}, "one column path of string in .*, got binary"),
    "nested labels": ({"path": PATHS, "label": [{"a": 1}, {"a": 2}]}, "column label .*, got str"),
    "labels of dates": ({"path": PATHS, "label": np.zeros(2, "M8[ms]")}, "got timestamp"),
    "labels of 2^63": ({"path": PATHS, "label": np.full(2, 2**63, "u8")}, "below 2.63"),
    "labels that are no number": ({"path": PATHS, "label": [1.5, float("nan")]}, "got 1.5 in row"),
    "checksums of numbers": ({"path": PATHS, "sha256": [1, 2]}, "one column sha256 of string"),
    "a path too long": ({"path": ["a" * 20000, "b"]}, "texts of at most 16384 bytes in column"),
}


@pytest.mark.parametrize("name", TABLES)
def test_hostile_tables_are_refused(tmp_path, name):
    content, told = TABLES[name]
    pq.write_table(pa.table(content), tmp_path / "l.parquet")
    refused(read_manifest, tmp_path / "l.parquet", match=told)


def test_a_column_that_comes_twice_is_refused(tmp_path):
    pq.write_table(pa.table([PATHS, PATHS], names=["path", "path"]), tmp_path / "l.parquet")
    refused(read_manifest, tmp_path / "l.parquet", match="Expected one column path")


def test_what_unfolds_to_far_more_than_its_file_is_refused_before_it_is_read(
    tmp_path, monkeypatch
):
    long = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int32)), ["x" * 10**6])
    pq.write_table(pa.table({"path": long}), tmp_path / "l.parquet", compression="zstd")
    refused(read_manifest, tmp_path / "l.parquet", match="texts of at most 16384 bytes")
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, np.int32)), ["a.png"])
    pq.write_table(pa.table({"path": many}), tmp_path / "l.parquet")
    monkeypatch.setattr(manifest_formats, "FEW_ROWS", 10**5)
    refused(
        read_manifest, tmp_path / "l.parquet", match="unfolds to about its size, got 1,000,000"
    )


def test_columns_that_are_not_wanted_are_not_read(tmp_path):
    bomb = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**4, np.int32)), ["x" * 10**6])
    paths = [f"{place}.png" for place in range(10**4)]
    table = pa.table({"path": paths, "note": bomb})
    pq.write_table(table, tmp_path / "l.parquet", compression="zstd")
    assert len(read_manifest(tmp_path / "l.parquet").paths) == 10**4


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_damaged_tables_are_one_line(tmp_path, share):
    pq.write_table(pa.table({"path": [f"{k}.png" for k in range(999)]}), tmp_path / "l.parquet")
    whole = bytearray((tmp_path / "l.parquet").read_bytes())
    place = int(share * len(whole))
    whole[place : place + 8] = b"\xff" * 8
    (tmp_path / "l.parquet").write_bytes(whole)
    try:
        read_manifest(tmp_path / "l.parquet")
    except DataError as error:
        assert "l.parquet" in str(error)  # noqa: PT017  some damage stays within a path's letters


DECLARED = {
    "deep nesting": ("[" * 100_000, "recursion"),
    "no sets": ("[]", "Expected a benchmark file"),
    "a name that leaves the folder": ({"name": "../evil"}, "Expected a set name"),
    "a pattern that leaves the root": ({"files": "../*.png"}, "below the root, got '../"),
    "an absolute pattern": ({"files": "/etc/*"}, "below the root, got '/etc"),
    "a count of text": ({"count": "many"}, "count"),
    "a pattern that is no text": ({"files": 3}, "files"),
}


@pytest.mark.parametrize("name", DECLARED)
def test_hostile_benchmark_files_are_refused(tmp_path, name):
    content, told = DECLARED[name]
    if isinstance(content, dict):
        words = ("name", "role", "title", "source", "citation", "licence", "files")
        entry = dict.fromkeys(words, "x") | {"count": 1} | content
        content = json.dumps({"sets": [entry]})
    (tmp_path / "b.json").write_text(content)
    refused(read_declaration, tmp_path / "b.json", match=told)
    assert csv.field_size_limit() == 131072  # the bound that hostile lists meet


@pytest.mark.parametrize("pattern", ["", "**x/*.png", "a\0*"])
def test_patterns_that_are_none_are_refused(tmp_path, pattern):
    words = ("name", "role", "title", "source", "citation", "licence")
    entry = dict.fromkeys(words, "x") | {"count": 1, "files": pattern}
    (tmp_path / "b.json").write_text(json.dumps({"sets": [entry]}))
    (declared,) = read_declaration(tmp_path / "b.json")
    try:
        assert next(problems(declared, tmp_path)).startswith("no image matches")
    except DataError as error:
        assert "Set x: cannot look for" in str(error)  # noqa: PT017  it depends on Python's version
