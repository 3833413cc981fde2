"""The index of a .tar: written once, believed only where it agrees with the archive."""

import io
import json
import os
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save

from gradscore.data import archives, open_set, tar_index
from gradscore.errors import DataError

LONG = "a" * 120


def png(value):
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return file.getvalue()


CONTENTS = {
    "a/1.png": png(1),
    "a/1.cls": b"4",
    "a/2.png": png(2),
    "a/2.cls": b"7",
    "./a/3.png": png(3),
    f"{LONG}/4.png": png(4),
    "é\udcff.png": png(5),
    "note.txt": b"",
}


def make_archive(path, contents=CONTENTS):
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def small_archives_have_one(monkeypatch):
    monkeypatch.setattr(tar_index, "INDEXED", len(CONTENTS))


def facts(images):
    pixels = [images[place].getpixel((0, 0)) for place in range(len(images))]
    return list(images.paths), images.labels.tolist(), images.sha256, images.notice, pixels


def test_an_archive_is_listed_once(tmp_path, monkeypatch):
    path = make_archive(tmp_path / "s.tar")
    found = facts(open_set(path, classes=10))
    assert found[:2] == (
        ["a/1.png", "a/2.png", "a/3.png", f"{LONG}/4.png", "é\udcff.png"],
        [4, 7, -1, -1, -1],
    )
    assert "passed over: 1 .txt" in found[3]
    assert found[4] == [1, 2, 3, 4, 5]
    assert sorted(os.listdir(tmp_path)) == ["s.tar", "s.tar.index"]
    monkeypatch.setattr(archives, "open_archive", None)  # not called again
    assert facts(open_set(path, classes=10)) == found


@pytest.mark.parametrize("kind", ["few members", "compressed", "in the way", "full disk"])
def test_archives_without_an_index_are_opened_all_the_same(tmp_path, kind, monkeypatch):
    path = make_archive(tmp_path / ("s.tgz" if kind == "compressed" else "s.tar"))
    place = tar_index.index_path(path)
    if kind == "few members":
        monkeypatch.setattr(tar_index, "INDEXED", len(CONTENTS) + 1)
    elif kind == "in the way":
        place.mkdir()
    elif kind == "full disk":

        def full(*how):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
    assert len(open_set(path)) == 5
    assert not place.is_file()
    assert len(os.listdir(tmp_path)) == 1 + place.is_dir()


@pytest.mark.parametrize("change", ["size", "time"])
def test_an_archive_that_changed_is_listed_anew(tmp_path, change):
    path = make_archive(tmp_path / "s.tar")
    open_set(path)
    state = os.stat(path)
    more = {"b.png": png(6), "b.txt": bytes(20_000)}  # archives are filled up to 10,240 bytes
    contents = CONTENTS | (more if change == "size" else {"a/2.png": png(9)})
    make_archive(path, contents)
    if change == "size":
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    images = open_set(path)
    assert facts(images)[4] == ([1, 2, 3, 4, 5, 6] if change == "size" else [1, 9, 3, 4, 5])
    listed = tar_index.read_index(path)
    assert len(listed.names) == len(images)


def rewritten(path, **changed):
    """Change arrays, or entries of the text, of an index."""
    place = tar_index.index_path(path)
    content = place.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    about = json.loads(content[8 : 8 + length])["__metadata__"]
    arrays = {name: values.copy() for name, values in load(content).items()}
    for name, value in changed.items():
        (arrays if name in arrays else about)[name] = value
    place.write_bytes(save(arrays, about))


@pytest.mark.parametrize(
    "changed",
    [
        {"format": "another"},
        {"labels": np.array([0, 1, 2, 2, 3], np.int32)},
        {"labels": np.array([0, 1, 2, 2, -1], np.int32)},
        {"labels": np.zeros(4, np.int32)},
        {"places": np.full((5, 2), -1)},
        {"places": np.array([[512, 1 << 62]] * 5)},
        {"places": np.zeros((5, 2), np.float32)},
        {"ends": np.array([0, 3, 2, 4, 5, 6])},
        {"ends": np.array([0, 1, 2, 3, 4, 1 << 40])},
        {"others": "[]"},
        {"others": '{".txt": "1"}'},
        {"members": "many"},
    ],
    ids=str,
)
def test_an_index_that_contradicts_itself_is_not_believed(tmp_path, changed):
    path = make_archive(tmp_path / "s.tar")
    found = facts(open_set(path, classes=10))
    rewritten(path, **changed)
    assert tar_index.read_index(path) is None
    assert facts(open_set(path, classes=10)) == found
    assert tar_index.read_index(path) is not None


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, bytes(8) + b"{}"], ids=repr)
def test_an_index_that_is_none_is_written_anew(tmp_path, content):
    path = make_archive(tmp_path / "s.tar")
    tar_index.index_path(path).write_bytes(content)
    assert len(open_set(path)) == 5
    assert len(tar_index.read_index(path).names) == 5


def test_no_index_gives_an_image_the_name_of_another(tmp_path):
    path = make_archive(tmp_path / "s.tar")
    open_set(path)
    places = tar_index.read_index(path).places
    rewritten(path, places=places[[1, 0, 2, 3, 4]])
    images = open_set(path)
    for place, name in enumerate(("a/1.png", "a/2.png")):
        with pytest.raises(
            DataError, match=rf"s.tar:{name}: expected its header before it.*index"
        ):
            images[place]
    assert images[2].getpixel((0, 0)) == 3
    rewritten(path, places=places + [[0, 1]] * 5)
    for place in range(5):
        with pytest.raises(DataError, match="expected its header"):
            open_set(path)[place]
