"""Benchmark declarations: those of the repository are sound, and every difference is named."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from gradscore.cli.manifests import build
from gradscore.data.declared import build_list, problems, read_declaration
from gradscore.errors import DataError

FILES = sorted((Path(__file__).parents[2] / "data_manifests").glob("*.json"))


@pytest.fixture
def benchmark(tmp_path):
    entry = {
        "name": "birds",
        "role": "id",
        "title": "Birds",
        "source": "https://example.org/birds",
        "citation": "Nobody, 2020",
        "licence": "public domain",
        "files": "birds/*/*.png",
        "count": 3,
        "folders": 2,
        "labels": "folders",
    }
    root = tmp_path / "data"
    for name in ("birds/wren/b.png", "birds/crow/a.png", "birds/wren/c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    path = tmp_path / "birds.json"
    path.write_text(json.dumps({"sets": [entry]}))
    return read_declaration(path)[0], root


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_declarations_are_sound(path):
    declared = read_declaration(path)
    assert len({entry.name for entry in declared}) == len(declared)
    assert [entry.role for entry in declared] == ["id"] + ["ood"] * (len(declared) - 1)
    assert all(entry.count > 0 and not entry.files.startswith("/") for entry in declared)


def test_list_has_sorted_paths_labels_by_folder_and_checksums(benchmark, tmp_path):
    declared, root = benchmark
    assert build_list(declared, root, tmp_path / "birds.csv") == 3
    header, *rows = (tmp_path / "birds.csv").read_text().splitlines()
    assert header == "path,label,sha256"
    assert [row.rsplit(",", 1)[0] for row in rows] == [
        "birds/crow/a.png,0",
        "birds/wren/b.png,1",
        "birds/wren/c.png,1",
    ]
    assert list(problems(declared, root, tmp_path / "birds.csv")) == []


def test_each_difference_is_named(benchmark, tmp_path):
    declared, root = benchmark
    build_list(declared, root, tmp_path / "birds.csv")
    (root / "birds/crow/a.png").unlink()
    (root / "birds/wren/b.png").write_bytes(b"other")
    (root / "birds/wren/d.png").write_bytes(b"new")
    (root / "birds/wren/e.png").write_bytes(b"new")
    assert list(problems(declared, root, tmp_path / "birds.csv")) == [
        "expected 3 images, found 4",
        "expected 2 folders, found 1",
        "missing: birds/crow/a.png",
        "not in the list: birds/wren/d.png",
        "not in the list: birds/wren/e.png",
        "differs from the list: birds/wren/b.png",
    ]


def test_an_absent_set_says_where_to_get_it(benchmark, tmp_path):
    declared, _ = benchmark
    (problem,) = problems(declared, tmp_path)
    assert "get it from https://example.org/birds" in problem
    with pytest.raises(DataError, match=r"no image matches birds/\*/\*.png"):
        build_list(declared, tmp_path, tmp_path / "birds.csv")


def test_a_doubtful_number_or_layout_is_called_so(benchmark, tmp_path):
    declared, root = benchmark
    doubtful = replace(declared, count=4, folders=3, unverified=("count", "files"))
    assert list(problems(doubtful, root)) == [
        "expected 4 images (this number is unverified), found 3",
        "expected 3 folders, found 2",
    ]
    (problem,) = problems(doubtful, tmp_path)
    assert "(this layout is unverified)" in problem


def test_a_list_that_is_not_there_is_a_finding(benchmark, tmp_path):
    declared, root = benchmark
    (problem,) = problems(declared, root, tmp_path / "birds.csv")
    assert problem.startswith(f"no list at {tmp_path / 'birds.csv'}; write it with")


def test_what_is_unverified_has_to_be_a_field(benchmark, tmp_path):
    entry = asdict(benchmark[0]) | {"unverified": ["colour"]}
    (tmp_path / "bad.json").write_text(json.dumps({"sets": [entry]}))
    with pytest.raises(DataError, match="unverified names 'colour', which is no field"):
        read_declaration(tmp_path / "bad.json")


def test_a_bad_declaration_is_refused(tmp_path):
    (tmp_path / "bad.json").write_text('{"sets": [{"name": "x"}]}')
    with pytest.raises(DataError, match="missing"):
        read_declaration(tmp_path / "bad.json")
    with pytest.raises(DataError, match="Cannot read"):
        read_declaration(tmp_path / "absent.json")


def test_a_list_that_cannot_be_written_is_one_line(benchmark, tmp_path):
    declared, root = benchmark
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Cannot write the list"):
        build_list(declared, root, tmp_path / "file" / "birds.csv")


def test_a_list_without_checksums_is_refused(benchmark, tmp_path):
    declared, root = benchmark
    (tmp_path / "plain.csv").write_text("path,label\nbirds/crow/a.png,0\n")
    with pytest.raises(DataError, match="sha256 column"):
        list(problems(declared, root, tmp_path / "plain.csv"))


def test_build_writes_what_is_there_and_names_the_rest(benchmark, tmp_path):
    declared, root = benchmark
    absent = replace(declared, name="fish", files="fish/*.png")
    path = tmp_path / "animals.json"
    path.write_text(json.dumps({"sets": [asdict(absent), asdict(replace(declared, count=4))]}))
    done = CliRunner().invoke(build, [str(path), str(root), "-o", str(tmp_path / "lists")])
    assert done.exit_code == 1
    assert done.stdout == f"{tmp_path / 'lists' / 'birds.csv'}: 3 images (declared: 4)\n"
    assert "Set fish: no image matches fish/*.png" in done.stderr
    assert (tmp_path / "lists" / "birds.csv").exists()
