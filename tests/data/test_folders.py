"""Folders, lists, archives and tables as people have them: links, endings, names, packing."""

import contextlib
import datetime
import decimal
import io
import json
import os
import subprocess
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from helpers.pictures import COLOURS, encoded, folder_of
from PIL import Image

from gradscore.cli import cli
from gradscore.data import open_set
from gradscore.data.folders import find_images
from gradscore.data.labels import Wanted
from gradscore.data.manifest import read_manifest
from gradscore.data.pictures import decode_image
from gradscore.data.tables import open_tables
from gradscore.errors import DataError

AVIF = pytest.mark.skipif("AVIF" not in Image.OPEN, reason="this Pillow has no AVIF")


def test_links_to_class_folders_are_followed(tmp_path):
    folder_of(tmp_path / "elsewhere", "cats/1.png", "cats/2.png")
    folder = folder_of(tmp_path / "set", "dog/1.png")
    (folder / "cat").symlink_to(tmp_path / "elsewhere" / "cats")
    (folder / "dog" / "2.png").symlink_to(tmp_path / "elsewhere" / "cats" / "1.png")
    images = open_set(folder, classes=2)
    assert images.paths == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images[0].size == (9, 6)


def test_links_that_go_round_end(tmp_path):
    folder = folder_of(tmp_path / "set", "a/1.png", "b/1.png")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "b").symlink_to(folder / "b")
    (folder / "b" / "a").symlink_to(folder / "a")
    (folder / "self").symlink_to(folder / "self")
    images = open_set(folder, labelled=False)
    assert {"a/1.png", "b/1.png", "a/b/1.png", "b/a/1.png"} == set(images.paths)
    assert "links to folders above" in images.notice


def test_links_to_the_same_folders_over_and_over_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("gradscore.data.folders.MOST_REVISITS", 10)
    folder = folder_of(tmp_path / "set", *(f"{name}/1.png" for name in "abcdefgh"))
    for name in "abcdefgh":
        (folder / name / "next").symlink_to(folder / "a")
    assert len(open_set(folder, labelled=False)) == 15
    for name in "abcdefgh":
        for other in "bcdefgh":
            (folder / name / other).symlink_to(folder / other)
    with pytest.raises(DataError, match="lead to the same folders at most 10 times over"):
        open_set(folder, labelled=False)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.jfif", "JPEG"),
        ("x.JPE", "JPEG"),
        ("x.mpo", "MPO"),
        ("x.jpg", "MPO"),
        pytest.param("x.avif", "AVIF", marks=AVIF),
        ("x.webp", "WEBP"),
        ("x.tif", "TIFF"),
        ("x.gif", "GIF"),
        ("x.pnm", "PPM"),
    ],
)
def test_endings_that_pillow_reads(tmp_path, name, kind):
    more = [Image.fromarray(255 - COLOURS)]
    options = {"save_all": True, "append_images": more} if kind in ("MPO", "GIF", "TIFF") else {}
    (tmp_path / name).write_bytes(encoded(kind=kind, **options))
    (image,) = open_set(tmp_path)
    difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - COLOURS).mean()
    assert difference < 60  # the first picture of several


def test_what_is_passed_over_is_counted_by_ending(tmp_path):
    folder = folder_of(tmp_path, "a/1.png", "__MACOSX/a/1.png", "a/._1.png", ".cache/1.png")
    for name in ("a/1.heic", "a/2.HEIC", "a/list.txt", "README", "a/.DS_Store"):
        (folder / name).write_bytes(b"")
    images = open_set(folder)
    assert images.paths == ["a/1.png"]
    assert "passed over: 4 hidden, 2 .heic, 1 .txt, 1 without an ending" in images.notice
    (folder / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"No images .* there are 4 hidden, 2 .heic, 1 .txt"):
        open_set(folder)


def test_folders_of_packed_images_and_packed_folders_say_how(tmp_path):
    (tmp_path / "s-000.tar").write_bytes(b"")
    with pytest.raises(
        DataError, match=rf"there are 1 .tar, which are named as {tmp_path}/\*.tar"
    ):
        open_set(tmp_path)
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"No set of images at .* Unpack it to a folder."):
        open_set(tmp_path / "images.zip")


def test_paths_of_lists_from_elsewhere(tmp_path):
    folder = folder_of(tmp_path / "set", "a/1.png", "a/2.png", "a/3.png", "a\\4.png")
    rows = ["a\\1.png", f"{folder}/a/2.png", "./a/3.png", "a\\4.png"]
    (folder / "list.csv").write_text("path\n" + "\n".join(rows))
    images = open_set(folder / "list.csv")
    assert images.paths == ["a/1.png", "a/2.png", "./a/3.png", "a\\4.png"]
    assert len(list(images)) == 4
    link = tmp_path / "link"
    link.symlink_to(folder)
    (tmp_path / "list.txt").write_text(f"{folder}/a/1.png 1\n{link}/a/2.png 2\n")
    assert open_set(f"{tmp_path}/list.txt@{link}").paths == ["a/1.png", "a/2.png"]


@pytest.mark.parametrize(
    "path", ["..\\secret.png", "a\\..\\..\\secret.png", "{outside}/secret.png"]
)
def test_paths_from_elsewhere_do_not_leave_the_root(tmp_path, path):
    folder = folder_of(tmp_path / "set", "a/1.png")
    folder_of(tmp_path, "secret.png")
    (folder / "list.csv").write_text("path\n" + path.format(outside=tmp_path))
    with pytest.raises(DataError, match="Expected paths inside"):
        read_manifest(folder / "list.csv")


@pytest.mark.parametrize("ending", ["tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_compressed_archives(tmp_path, ending):
    members = {"a.png": encoded(), "a.cls": b"4", "b.png": encoded(kind="JPEG"), "b.cls": b"2"}
    mode = "gz" if ending == "tgz" else ending.removeprefix("tar.")
    with tarfile.open(tmp_path / f"s.{ending}", f"w:{mode}") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    images = open_set(tmp_path / f"s.{ending}")
    assert images.labels.tolist() == [4, 2]
    np.testing.assert_array_equal(np.asarray(images[0]), COLOURS)
    assert images[1].size == (9, 6)


def table_of(path, rows, names=("cat", "dog"), column="image", **options):
    """Write a table as Hugging Face's data sets do."""
    image = pa.array(
        [{"bytes": content, "path": f"{k}.png"} for k, (content, _) in enumerate(rows)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    features = {"label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    label = pa.array([label for _, label in rows], pa.int64())
    table = pa.table({column: image, "label": label}).replace_schema_metadata(metadata)
    pq.write_table(table, path, **options)
    return path


def test_tables_with_images(tmp_path):
    pictures = [np.full((2, 3), value, np.uint8) for value in range(7)]
    rows = [(encoded(Image.fromarray(p)), k % 2) for k, p in enumerate(pictures)]
    table_of(tmp_path / "test-00000-of-00002.parquet", rows[:5], row_group_size=2)
    table_of(tmp_path / "test-00001-of-00002.parquet", rows[5:])
    images = open_set(f"{tmp_path}/test-*.parquet", classes=2)
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    for place in (6, 0, 3, 2, 5, 4, 1):
        assert np.asarray(images[place])[0, 0] == place
    assert images.paths[5] == "test-00001-of-00002.parquet/0"
    braces = open_set(f"{tmp_path}/test-{{00000..00001}}-of-00002.parquet")
    assert braces.sha256 == images.sha256
    few = open_set(f"{tmp_path}/test-*.parquet", limit=4)
    assert sorted(few.labels.tolist()) == [0, 0, 1, 1]
    other = open_set(f"{tmp_path}/test-*.parquet", class_names=["emu", "dog", "cat"])
    assert other.labels.tolist() == [2, 1, 2, 1, 2, 1, 2]
    assert "labels of label by their names" in other.notice


@pytest.mark.parametrize("nested", [False, True])
def test_a_value_of_many_rows_is_held_once(tmp_path, nested):
    image = pa.DictionaryArray.from_arrays([0, 1, None] * 100, [encoded(), b"no"])
    if nested:
        paths = pa.DictionaryArray.from_arrays([0] * 300, ["p" * 1000])
        image = pa.StructArray.from_arrays([image, paths], ["bytes", "path"])
    label = pa.DictionaryArray.from_arrays([0, 1, None] * 100, ["cat" * 1000, "dog"])
    table = pa.table({"image": image, "label": label})
    pq.write_table(table, tmp_path / "a.parquet", store_schema=False)
    opened = open_tables(str(tmp_path / "a.parquet"), Wanted(classes=2))
    assert opened.labels.tolist() == [0, 1, -1] * 100
    assert opened.reader.read(3).size == (9, 6)
    (kept,) = opened.reader._kept.values()
    assert kept.nbytes < 10 * 300
    with pytest.raises(DataError, match=r"a\.parquet/2: the row holds no image"):
        opened.reader.read(2)


def test_lists_of_labels_are_not_read(tmp_path):
    label = pa.array([["cat", "dog"], ["dog"]])
    pq.write_table(pa.table({"image": [encoded()] * 2, "label": label}), tmp_path / "a.parquet")
    images = open_set(tmp_path / "a.parquet", classes=2)
    assert images.labels.tolist() == [-1, -1]
    assert "label holds several values an image" in images.notice


def test_tables_without_what_is_needed(tmp_path):
    table_of(tmp_path / "a.parquet", [(encoded(), 1), (None, 0)], column="img")
    images = open_set(tmp_path / "a.parquet")
    assert images[0].size == (9, 6)
    with pytest.raises(DataError, match=r"a.parquet/1: the row holds no image, at most a path"):
        images[1]
    pq.write_table(pa.table({"image": [encoded(), b"no"], "y": [1, 2]}), tmp_path / "b.parquet")
    images = open_set(tmp_path / "b.parquet")
    assert images.labels.tolist() == [-1, -1]
    with pytest.raises(DataError, match=r"b.parquet/1: not an image"):
        images[1]
    pq.write_table(pa.table({"image": ["a/1.png"], "label": [1]}), tmp_path / "c.parquet")
    assert open_set(tmp_path / "c.parquet").paths == ["a/1.png"]


def test_pictures_beyond_the_limit_of_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    folder_of(tmp_path / "set", "1.png")
    expected = "at most 20 pixels, got 54; `max_pixels=N` raises the limit"
    with pytest.raises(DataError, match=expected):
        open_set(tmp_path / "set")[0]
    assert open_set(tmp_path / "set", max_pixels=54)[0].size == (9, 6)
    with pytest.raises(DataError, match="at most 53 pixels, got 54"):
        open_set(tmp_path / "set", max_pixels=53)[0]
    assert Image.MAX_IMAGE_PIXELS == 20
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    Image.new("L", (8, 9)).save(tmp_path / "set" / "2.png")
    asked = ["extract", "--model", "digits", "--data", f"a={tmp_path}/set", "--layers", "last"]
    asked += ["--resize", "8x8", "--crop", "8", "--run", str(tmp_path / "run")]
    done = CliRunner().invoke(cli, asked)
    assert "got 72; `max_pixels=N`" in str(done.exception)
    done = CliRunner().invoke(cli, [*asked, "--max-pixels", "72"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.array([[0, 0.5], [1, 2]], np.float32), "floating point of 0 to 2"),
        (np.array([[0, 70000]], np.int32), "got 0 to 70000"),
    ],
)
def test_pictures_of_unknown_scale_say_what_to_do(values, found):
    content = encoded(Image.fromarray(values), "TIFF")
    with pytest.raises(DataError, match=f"x: expected .*{found}; store it with 8 bits"):
        decode_image(content, "x")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, "a/1.png", "b/1.png")

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    scan = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"Cannot read .*/b': Permission denied"):
        open_set(folder)


LABELS = {
    "dates": [datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)],
    "times": [datetime.datetime(2020, 1, 1), datetime.datetime(2021, 1, 1)],
    "durations": [datetime.timedelta(1), datetime.timedelta(2)],
    "nanoseconds": pa.array([1, 2], pa.timestamp("ns")),
    "years to come": pa.array([10**7, 1], pa.date32()),
    "fractions": [0.5, 1.0],
    "nan": [float("nan"), 1.0],
    "numbers in text": ["1", "0"],
    "names": ["dog", "cat"],
    "bytes": [b"dog", b"\xff"],
    "truth": [True, False],
    "nothing": pa.nulls(2),
    "decimals": [decimal.Decimal("1.0"), None],
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_type_are_taken_or_refused_in_one_line(tmp_path, kind):
    features = {"label": {"names": ["cat", "dog"]}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    for metadata in ({}, about):
        table = pa.table({"image": [encoded(), encoded()], "label": LABELS[kind]})
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
        for known in ({}, {"class_names": ["dog", "cat"]}):
            with contextlib.suppress(DataError):
                labels = open_set(tmp_path / "a.parquet", **known).labels
                assert set(labels.tolist()) <= {-1, 0, 1}
                if kind == "names" and known:
                    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize("twice", ["image", "label"])
def test_columns_that_come_twice_are_refused(tmp_path, twice):
    names = ["image", "label", twice]
    columns = {"image": pa.array([encoded()]), "label": pa.array([1])}
    table = pa.Table.from_arrays([columns[name] for name in names], names=names)
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=f"Expected '{twice}' once"):
        open_set(tmp_path / "a.parquet")


def test_a_structure_with_the_bytes_twice_is_refused(tmp_path):
    column = pa.StructArray.from_arrays([pa.array([encoded()])] * 2, names=["bytes", "bytes"])
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"Cannot read .*a\.parquet"):
        open_set(tmp_path / "a.parquet")[0]


def test_folders_of_any_depth_are_walked(tmp_path):
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    with open(os.open("a.png", os.O_WRONLY | os.O_CREAT, dir_fd=place), "wb") as file:
        file.write(encoded())
    os.close(place)
    assert find_images(tmp_path).paths == ["d/" * 1500 + "a.png"]
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)
