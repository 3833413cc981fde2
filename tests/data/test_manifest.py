"""Lists of images: every form read and written, and no path that leaves its root."""

import numpy as np
import pytest

from gradscore.data.folders import find_images
from gradscore.data.identity import rows_sha256
from gradscore.data.manifest import (
    Manifest,
    file_sha256,
    read_manifest,
    write_manifest,
)
from gradscore.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "a/1.JPG", "a/sub/x y.png", "notes.md"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "images"


def listed(folder):
    paths = find_images(folder).paths
    labels = np.array([{"a": 0, "b": 1}[path[0]] for path in paths])
    return Manifest(folder, paths, labels, [file_sha256(folder / path) for path in paths])


def test_a_folder_is_listed_in_one_order(folder):
    assert find_images(folder).paths == ["a/1.JPG", "a/sub/x y.png", "b/2.png"]
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match=r"No images \(.avif .* in the folder"):
        find_images(folder / "empty")
    with pytest.raises(DataError, match="No folder at"):
        find_images(folder / "absent")


def test_hidden_files_of_a_folder_are_left_out(folder):
    before = find_images(folder).paths
    for hidden in ("a/._1.JPG", ".thumbnails/1.png"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"not a picture")
    assert find_images(folder).paths == before
    (folder / ".thumbnails" / "a").mkdir()
    (folder / ".thumbnails" / "a" / "1.png").write_bytes(b"")
    assert find_images(folder / ".thumbnails").paths == ["1.png", "a/1.png"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".txt"])
def test_what_is_written_is_read_back(folder, suffix):
    built = listed(folder)
    write_manifest(folder / f"list{suffix}", built)
    read = read_manifest(folder / f"list{suffix}")
    assert list(read.paths) == list(built.paths)
    assert read.labels.tolist() == [0, 0, 1]
    assert read.labels.dtype == np.int64
    assert list(read.sha256) == ([] if suffix == ".txt" else list(built.sha256))
    assert read.root == folder


def test_a_root_of_its_own(folder, tmp_path):
    write_manifest(tmp_path / "list.csv", listed(folder))
    assert read_manifest(f"{tmp_path}/list.csv@{folder}").root == folder
    with pytest.raises(DataError, match=r"No folder .*absent"):
        read_manifest(f"{tmp_path}/list.csv@{folder}/absent")


@pytest.mark.parametrize(
    "path", ["../secret.png", "a/../../secret.png", "/etc/secret.png", "link.png", "linked/1.png"]
)
def test_paths_that_leave_the_root_are_refused(folder, path):
    (folder.parent / "secret.png").write_bytes(b"")
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "linked").symlink_to(folder.parent)
    (folder / "list.csv").write_text(f"path,label\nb/2.png,0\n{path},1\n")
    with pytest.raises(DataError, match=r"Expected paths inside .*, got .* \(image 2\)"):
        read_manifest(folder / "list.csv")


def test_links_inside_the_root_are_followed(folder):
    (folder / "link.png").symlink_to(folder / "b/2.png")
    (folder / "list.csv").write_text("path,label\nlink.png,1\n")
    assert list(read_manifest(folder / "list.csv").paths) == ["link.png"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "l.csv",
            "number,label\na,1\n",
            "Expected the columns path,label in .*, got number,label",
        ),
        ("l.csv", "path,label\n", "lists no images"),
        ("l.csv", "path,label\na.png,cat\nb.png,1\n", "got both '1' and 'cat' \\(image 1\\)"),
        ("l.csv", "path,label\na.png,-2\n", "got '-2' in line 2"),
        ("l.csv", "path,label\n,1\n", "Expected a path, got none in line 2"),
        ("l.csv", "path,label,sha256\na,1,ab\nb,1,\n", "a sha256 for every image or none"),
        ("l.csv", b"\xff\xfepath,label\n", "Cannot read the manifest"),
        ("l.txt", "a.xyz\n", "Expected `path label`, got 'a.xyz' in line 1"),
        ("l.txt", "a.png -3\n", "got '-3' in line 1"),
        ("l.parquet", "no parquet", "Cannot read the manifest"),
        ("l.json", "{}", "Expected a manifest of .csv, .parquet, .txt"),
    ],
)
def test_malformed_lists_are_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path / name)


def test_absent_lists_and_unwritable_places(tmp_path):
    with pytest.raises(DataError, match="No manifest at"):
        read_manifest(tmp_path / "absent.csv")
    manifest = Manifest(tmp_path, ["a"], np.array([0]))
    with pytest.raises(DataError, match="Cannot write"):
        write_manifest(tmp_path / "absent" / "list.csv", manifest)
    with pytest.raises(DataError, match=r"Expected a manifest of .csv"):
        write_manifest(tmp_path / "list.json", manifest)


def test_labels_are_optional_and_a_byte_order_mark_is_no_name(tmp_path):
    (tmp_path / "list.csv").write_bytes("\ufeffpath\na.png\n".encode())
    assert read_manifest(tmp_path / "list.csv").labels.tolist() == [-1]


def test_the_identity_of_a_list_is_its_names_order_and_labels():
    labels = np.array([0, 1])
    digest = rows_sha256(["a", "b"], labels)
    others = [
        rows_sha256(["b", "a"], labels),
        rows_sha256(["a", "b"], labels[::-1]),
        rows_sha256(["a", "b"], labels, ["x"]),
    ]
    assert len({digest, *others}) == 4
