"""What labels mean: numbers are classes, names are looked up or sorted, nothing is silent."""

import io
import json
import tarfile

import numpy as np
import pytest
from helpers.pictures import encoded, folder_of

from gradscore.data import open_set
from gradscore.data.labels import class_numbers
from gradscore.data.sources import spread
from gradscore.errors import DataError

NAMES = ["cat", "dog", "traffic light"]


def archive_of(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def by_path(images):
    return dict(zip(images.paths, images.labels.tolist(), strict=True))


@pytest.mark.parametrize(
    ("folders", "labels"),
    [
        ([str(n) for n in range(12)], range(12)),
        ([f"{n:03d}" for n in range(12)], range(12)),
        (["2", "11", "7"], [2, 11, 7]),
    ],
    ids=["plain", "padded", "some"],
)
def test_folders_named_by_number_are_class_numbers(tmp_path, folders, labels):
    images = open_set(folder_of(tmp_path, *(f"{name}/a.png" for name in folders)), classes=12)
    found = {path.split("/")[0]: label for path, label in by_path(images).items()}
    assert found == dict(zip(folders, labels, strict=True))
    assert ("ImageFolder sorts" in images.notice) == (folders[-1] in ("11", "7"))


def test_numbers_among_the_models_class_names_are_names(tmp_path):
    folder = folder_of(tmp_path, "10/a.png", "2/a.png", "9/a.png")
    images = open_set(folder, class_names=["10", "2", "9"])
    assert images.labels.tolist() == [0, 1, 2]


def test_mixed_folder_names_are_sorted_and_told(tmp_path):
    folder = folder_of(tmp_path, "10/a.png", "2/a.png", "cat/a.png")
    images = open_set(folder, classes=3)
    assert images.labels.tolist() == [0, 1, 2]
    assert "sub-folders in sorted order are taken as classes: 10 = 0 to cat = 2" in images.notice


def test_parts_of_a_data_set_are_no_classes(tmp_path):
    folder = folder_of(tmp_path, "train/cat/a.png", "val/cat/a.png")
    images = open_set(folder, classes=2)
    assert images.labels.tolist() == [-1, -1]
    assert "labels are unknown: 2 sub-folders (train, val)" in images.notice
    folder_of(tmp_path / "one", "val/cat/a.png", "val/dog/a.png")
    notice = open_set(tmp_path / "one", classes=2).notice
    assert "if the classes are the sub-folders of val, name that folder" in notice


def test_names_that_the_model_knows_and_names_that_it_does_not(tmp_path):
    folder = folder_of(tmp_path, "Dog/a.png", "traffic_light/a.png", "zebra/a.png", "b.png")
    images = open_set(folder, class_names=NAMES)
    expected = {"Dog/a.png": 1, "traffic_light/a.png": 2, "zebra/a.png": -1, "b.png": -1}
    assert by_path(images) == expected
    assert "sub-folders that are no class of the model: zebra" in images.notice
    assert "1 outside of sub-folders without a label" in images.notice


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("path, label\na.png, 3\nb.png, \n", [3, -1]),
        ("path,class\na.png,3\nb.png,4\n", [3, 4]),
        ("Filename;Width;ClassId\na.png;30;3\nb.png;30;4\n", [3, 4]),
        ("image\tlabel\na.png\t3\nb.png\t4\n", [3, 4]),
        ("path,label\na.png,1.0\nb.png,\n", [1, -1]),
        ("path,label\na.png,dog\nb.png,cat\n", [1, 0]),
        ("PATH,Label,class\na.png,1,dog\nb.png,2,cow\n", [1, 2]),
    ],
    ids=["spaces", "class", "semicolons", "tabs", "decimals", "names", "both"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_columns_and_labels_of_lists(tmp_path, text, labels, encoding):
    (tmp_path / "list.csv").write_bytes(text.encode(encoding))
    images = open_set(tmp_path / "list.csv", class_names=["cat", "dog"])
    assert by_path(images) == dict(zip(["a.png", "b.png"], labels, strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b.png 3\nc.png 4\n", {"a b.png": 3, "c.png": 4}),
        ("a.png\t3\nc.png\t4\n", {"a.png": 3, "c.png": 4}),
        ("a.png, 3\nc.png,4\n", {"a.png": 3, "c.png": 4}),
        ("a.png\nd/c.png\n", {"a.png": -1, "d/c.png": -1}),
        ("a.png dog\nc.png cat\n", {"a.png": 1, "c.png": 0}),
        ("a.png\tdog\t0\t32\nc.png\tcat\t1\t9\n", {"a.png": 1, "c.png": 0}),
    ],
    ids=["spaces", "tabs", "commas", "paths alone", "names", "boxes"],
)
def test_imglists(tmp_path, text, expected):
    (tmp_path / "list.txt").write_text(text)
    assert by_path(open_set(tmp_path / "list.txt", classes=2)) == expected


def test_names_are_sorted_and_told_or_unknown_and_told():
    numbers, notice = class_numbers(["dog", "cat", None, "dog"], classes=2)
    assert numbers.tolist() == [1, 0, -1, 1]
    assert "labels in sorted order are taken as classes: cat = 0 to dog = 1" in notice
    numbers, notice = class_numbers(["dog", "cat"], classes=3)
    assert numbers.tolist() == [-1, -1]
    assert "labels are unknown: 2 labels (cat, dog)" in notice


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["1", "dog"], r"got both '1' and 'dog' \(image 2\)"),
        (["1", "-2"], r"0 or more, or -1, got '-2' in image 2"),
        (["1e300"], "below 2\\^63, got '1e300'"),
    ],
)
def test_impossible_labels_are_named(labels, message):
    with pytest.raises(DataError, match=message):
        class_numbers(labels, classes=2)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"v1.0/a.b.png": "", "v1.0/a.b.cls": "4"}, {"v1.0/a.b.png": 4}),
        ({"a.CLS": "4", "a.PNG": ""}, {"a.PNG": 4}),
        ({"a.png": "", "a.json": json.dumps({"label": 3, "x": 1})}, {"a.png": 3}),
        ({"a.png": "", "a.json": json.dumps({"cls": 3})}, {"a.png": 3}),
        ({"a.seg.png": "", "a.cls": "2"}, {"a.seg.png": 2}),
        (
            {"a.1.png": "", "a.2.png": "", "a.1.cls": "1", "a.2.cls": "2"},
            {"a.1.png": 1, "a.2.png": 2},
        ),
        ({"a.png": "", "a.cls": "dog\n", "b.png": "", "b.cls": "cat"}, {"a.png": 1, "b.png": 0}),
        ({"set/10/a.png": "", "set/2/b.png": ""}, {"set/10/a.png": 10, "set/2/b.png": 2}),
        ({"./a.png": "", "./a.cls": "2"}, {"a.png": 2}),
        ({"a.png": "", "._a.png": "x", "__MACOSX/a.png": "x", "a.cls": "2"}, {"a.png": 2}),
    ],
    ids=["dots", "upper", "json", "cls", "seg", "many", "names", "folders", "here", "macos"],
)
def test_labels_in_archives(tmp_path, members, expected):
    contents = {name: text.encode() or encoded() for name, text in members.items()}
    images = open_set(archive_of(tmp_path / "s.tar", contents), class_names=["cat", "dog"])
    assert by_path(images) == expected


def test_spread_shares_every_beginning_and_is_nested():
    groups = np.repeat([0, 1, 2], [50, 30, 3])
    order = spread(groups)
    assert sorted(order) == list(range(83))
    assert np.bincount(groups[order[:9]]).tolist() == [3, 3, 3]
    assert np.bincount(groups[order[:20]]).max() <= 9
    np.testing.assert_array_equal(order, spread(groups))


@pytest.mark.parametrize("labelled", [True, False])
def test_a_limit_takes_of_every_class(tmp_path, labelled):
    names = [f"{folder}/{n}.png" for folder in "abcde" for n in range(6)]
    folder = folder_of(tmp_path, *names, "e/x.png")
    (few, more) = (
        open_set(folder, classes=5, labelled=labelled, limit=limit) for limit in (10, 20)
    )
    assert sorted(path[0] for path in few.paths) == sorted("abcde" * 2)
    assert more.paths[:10] == few.paths
    assert few.labels.tolist() == [("abcde".index(p[0]) if labelled else -1) for p in few.paths]
    what = "classes" if labelled else "folders"
    assert f"10 of 31 images, spread over 5 {what} by a fixed seed" in few.notice
    assert few.sha256 != more.sha256
    again = open_set(folder, classes=5, labelled=labelled, limit=10)
    assert again.sha256 == few.sha256
    assert open_set(folder, limit=31).paths == open_set(folder).paths


def test_a_limit_reads_the_images_that_it_names(tmp_path):
    pixels = np.arange(12, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    labels = np.repeat([0, 1], 6)
    np.savez(tmp_path / "s.npz", images=pixels, labels=labels)
    images = open_set(tmp_path / "s.npz", limit=4)
    assert images.labels.tolist().count(1) == 2
    for path, label, image in zip(images.paths, images.labels, images, strict=True):
        place = np.asarray(image)[0, 0]
        assert path == f"s.npz/{place}"
        assert labels[place] == label


def test_unlabelled_images_come_last(tmp_path):
    rows = [f"{n}.png,{'' if n % 2 else n // 2 % 3}" for n in range(12)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    images = open_set(tmp_path / "list.csv", limit=8)
    assert sorted(images.labels[:6].tolist()) == [0, 0, 1, 1, 2, 2]
    assert images.labels[6:].tolist() == [-1, -1]


def test_several_labels_an_image_are_refused(tmp_path):
    (tmp_path / "list.txt").write_text("a.png 0 1 1\n")
    with pytest.raises(DataError, match=r"Expected `path label`, got 'a.png 0 1 1' in line 1"):
        open_set(tmp_path / "list.txt")


@pytest.mark.parametrize("ending", [".png", ".PNG"])
def test_lists_that_leave_the_ending_out(tmp_path, ending):
    folder_of(tmp_path, f"val/1{ending}", f"val/2{ending}")
    (tmp_path / "list.csv").write_text("ImageId,Class\n1,dog\n2,cat\n")
    images = open_set(f"{tmp_path}/list.csv@{tmp_path}/val", classes=2)
    assert by_path(images) == {f"1{ending}": 1, f"2{ending}": 0}
    assert images[1].size == (9, 6)


def test_hidden_folders_are_no_classes(tmp_path):
    folder = folder_of(tmp_path, "a/1.png", "b/1.png", ".ipynb_checkpoints/1-checkpoint.png")
    images = open_set(folder, classes=2)
    assert images.labels.tolist() == [0, 1]
    assert "passed over: 1 hidden" in images.notice
