"""Sets of images from every kind of source, and pictures of every kind and fault."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from helpers.pictures import COLOURS, encoded
from PIL import Image

from gradscore.data import batch_spans, first_readable, load_batches, open_set
from gradscore.data.folders import folder_labels
from gradscore.data.named import digit_arrays
from gradscore.data.pictures import decode_image
from gradscore.errors import DataError
from gradscore.models.preprocessing import Preprocessing

GREY = Preprocessing(None, None, (0.0,), (1.0,), mode="L")
RNG = np.random.default_rng(0)


def make_folder(root, names):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5, 3), number, np.uint8)).save(path)
    return root


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA"])
def test_modes_become_eight_bits(mode):
    picture = Image.fromarray(COLOURS).convert(mode)
    result = decode_image(encoded(picture), "x")
    expected = "L" if mode in ("L", "1", "LA") else "RGB"
    assert result.mode == expected
    np.testing.assert_array_equal(np.asarray(result), np.asarray(picture.convert(expected)))


def test_a_library_without_one_format_reads_the_others(monkeypatch):
    monkeypatch.delitem(Image.OPEN, "AVIF")
    assert decode_image(encoded(Image.fromarray(COLOURS)), "x").mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    result = decode_image(encoded(Image.fromarray(values)), "x")
    assert np.asarray(result).tolist() == [[0, 0, 1, 255]]


def test_cmyk_and_transparent_palettes_become_rgb():
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    assert decode_image(encoded(cmyk, "JPEG"), "x").mode == "RGB"
    palette = Image.fromarray(COLOURS).convert("P")
    content = encoded(palette, transparency=bytes(range(256)))
    np.testing.assert_array_equal(
        np.asarray(decode_image(content, "x")), np.asarray(palette.convert("RGB"))
    )


def test_the_recorded_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    result = decode_image(encoded(Image.fromarray(COLOURS), exif=exif), "x")
    np.testing.assert_array_equal(np.asarray(result), np.rot90(COLOURS, -1))


def test_a_picture_in_floating_point_is_refused():
    content = encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF")
    with pytest.raises(
        DataError,
        match=r"x: expected 8 or 16 bits a channel, got floating point of 1 to 1; store it",
    ):
        decode_image(content, "x")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_pictures_are_refused_by_name(kind):
    content = encoded(Image.fromarray(np.tile(COLOURS, (20, 20, 1))), kind)
    with pytest.raises(DataError, match="folder/x: "):
        decode_image(content[: len(content) // 2], "folder/x")


def test_no_picture_and_too_large_ones_are_refused(monkeypatch):
    with pytest.raises(DataError, match="x: not an image"):
        decode_image(b"hello", "x")
    with pytest.raises(DataError, match="x: not an image"):
        decode_image(b"", "x")
    for limit in (53, 20):  # PIL warns above its limit, and refuses above twice of it
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=f"x: expected an image of at most {limit} pixels"):
            decode_image(encoded(Image.fromarray(COLOURS)), "x")


def test_a_folder_with_its_classes(tmp_path):
    folder = make_folder(tmp_path, ["dog/1.png", "cat/1.png", "cat/0.png"])
    images = open_set(folder, class_names=["dog", "cat", "cow"])
    assert images.paths == ["cat/0.png", "cat/1.png", "dog/1.png"]
    assert images.labels.tolist() == [1, 1, 0]
    assert np.asarray(images[2])[0, 0, 0] == 0
    assert open_set(folder, classes=2).labels.tolist() == [0, 0, 1]
    assert "taken as classes: cat = 0 to dog = 1" in open_set(folder, classes=2).notice
    assert open_set(folder, classes=2, labelled=False).labels.tolist() == [-1, -1, -1]
    unknown = open_set(folder, classes=3)
    assert unknown.labels.tolist() == [-1, -1, -1]
    assert "2 sub-folders (cat, dog), whose names are not the model's" in unknown.notice
    with pytest.raises(IndexError, match="an image of 0 to 2, got 3"):
        images[3]


def test_images_outside_of_class_folders_have_no_label():
    labels, notice = folder_labels(["a.png", "b/c.png"], None, 2)
    assert labels.tolist() == [-1, -1]
    assert notice
    assert "no sub-folders" in folder_labels(["a.png"], None, 1)[1]


def test_a_manifest_and_its_digests(tmp_path):
    make_folder(tmp_path, ["a/0.png", "a/1.png"])
    (tmp_path / "list.csv").write_text("path,label,sha256\na/1.png,3,00\na/0.png,-1,00\n")
    images = open_set(f"{tmp_path}/list.csv")
    assert images.labels.tolist() == [3, -1]
    with pytest.raises(DataError, match=r"a/1.png: its SHA-256 is not the one in the manifest"):
        images[0]
    (tmp_path / "list.txt").write_text("1.png 3\n0.png -1\n")
    images = open_set(f"{tmp_path}/list.txt@{tmp_path}/a", limit=1)
    assert len(images) == 1
    assert np.asarray(images[0])[0, 0, 0] == 1
    (tmp_path / "list.csv").write_text("path,label\na/2.png,3\n../a/0.png,0\n")
    with pytest.raises(DataError, match="Expected paths inside"):
        open_set(f"{tmp_path}/list.csv")
    (tmp_path / "list.csv").write_text("path,label\na/2.png,3\n")
    with pytest.raises(DataError, match=r"a/2.png: cannot be read: No such file"):
        open_set(f"{tmp_path}/list.csv")[0]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays(tmp_path, save):
    save(tmp_path / "s.npz", images=COLOURS[None].repeat(3, 0), labels=np.array([2, 1, -5]))
    images = open_set(tmp_path / "s.npz")
    assert images.labels.tolist() == [2, 1, -1]
    np.testing.assert_array_equal(np.asarray(images[2]), COLOURS)
    again = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(np.asarray(again[1]), COLOURS)
    save(tmp_path / "g.npz", images=COLOURS[:, :, :1][None])
    assert open_set(tmp_path / "g.npz")[0].mode == "L"
    save(tmp_path / "f.npz", images=np.ones((2, 3, 4, 4)))
    assert open_set(tmp_path / "f.npz")[1].dtype == np.float32
    other = np.ones((2, 3, 4, 4))
    other[1] = 0.5
    save(tmp_path / "o.npz", images=other)
    assert open_set(tmp_path / "o.npz").sha256 != open_set(tmp_path / "f.npz").sha256


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": COLOURS}, "Expected the array images in .*, got pictures"),
        ({"images": COLOURS[None, :, :, :2]}, r"uint8 \[1, 6, 9, 2\]"),
        ({"images": np.ones((2, 3))}, r"float64 \[2, 3\]"),
        ({"images": COLOURS[None], "labels": np.zeros(2, int)}, r"Expected whole labels \[1\]"),
        ({"images": np.array([{}], dtype=object)}, "Cannot read"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(DataError, match=message):
        open_set(tmp_path / "s.npz")


def make_archive(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_archives(tmp_path):
    png = encoded(Image.fromarray(COLOURS))
    make_archive(tmp_path / "s-00.tar", {"a/1.png": png, "a/1.cls": b"4", "a/2.x.png": png})
    make_archive(tmp_path / "s-01.tar", {"3.cls": b"7\n", "3.png": png, "4.png": b"broken"})
    images = open_set(f"{tmp_path}/s-{{00..01}}.tar")
    assert images.paths == ["a/1.png", "a/2.x.png", "3.png", "4.png"]
    assert images.labels.tolist() == [4, -1, 7, -1]
    assert open_set(f"{tmp_path}/s-*.tar").sha256 == images.sha256
    np.testing.assert_array_equal(np.asarray(images[2]), COLOURS)
    with pytest.raises(DataError, match=r"s-01.tar:4.png: not an image"):
        images[3]
    with pytest.raises(DataError, match=r"No archive at .*s-02.tar"):
        open_set(f"{tmp_path}/s-{{00..02}}.tar")
    with pytest.raises(DataError, match="No archive at"):
        open_set(f"{tmp_path}/absent-*.tar")
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match="Cannot read the archive"):
        open_set(tmp_path / "bad.tar")


def test_digits():
    known, unseen = open_set("digits:test"), open_set("digits:unseen")
    assert (len(known), len(unseen)) == (361, 714)
    assert set(known.labels.tolist()) == set(range(6))
    assert set(unseen.labels.tolist()) == {-1}
    train = digit_arrays("train")[2]
    assert not set(train) & set(known.paths)
    for split in ("photos", "noise"):
        images = open_set(f"digits:{split}")
        assert images[0].size == (8, 8)
        assert images.sha256 == open_set(f"digits:{split}").sha256
    with pytest.raises(DataError, match=r"Expected digits:test \| .*, got digits:dev"):
        open_set("digits:dev")


def test_torchvision(tmp_path):
    images = open_set(f"torchvision:FakeData@{tmp_path}", limit=3)
    assert images[2].mode == "RGB"
    assert images.paths[2] == "FakeData/2"
    with pytest.raises(DataError, match=r"Expected a dataset of torchvision .*, got 'Absent'"):
        open_set("torchvision:Absent:test")
    with pytest.raises(DataError, match="no such split"):
        open_set("torchvision:FakeData:dev")


def test_no_source_names_what_is_accepted(tmp_path):
    (tmp_path / "absence").mkdir()
    expected = r"^No such file or folder: '.*absent'. Did you mean .*/absence\?$"
    with pytest.raises(DataError, match=expected):
        open_set(tmp_path / "absent")
    expected = r"^No set of images at 'torchvison:.*expected a folder of.* mean torchvision\?$"
    with pytest.raises(DataError, match=expected):
        open_set("torchvison:FakeData:test")
    with pytest.raises(DataError, match="a limit of 1 or more images, got 0"):
        open_set("digits:test", limit=0)


def test_batches_are_cut_at_multiples_of_their_size():
    assert batch_spans(6, 11, 4) == [(6, 8), (8, 11)]
    assert batch_spans(8, 8, 4) == []
    assert batch_spans(0, 9, 4) == [(0, 4), (4, 8), (8, 9)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_their_places_whatever_fails(tmp_path, workers):
    folder = make_folder(tmp_path, [f"{i}.png" for i in range(7)])
    (folder / "2.png").write_bytes(b"broken")
    Image.fromarray(COLOURS).save(folder / "5.png")
    images = open_set(folder)
    options = {"shape": (1, 4, 5), "skipped": frozenset({0, 1}), "workers": workers}
    batches = list(load_batches(images, GREY, [(0, 3), (3, 6), (6, 7)], **options))
    assert [batch.index.tolist() for batch in batches] == [[], [3, 4], [6]]
    assert [batch.span for batch in batches] == [(0, 3), (3, 6), (6, 7)]
    assert batches[0].images.shape == (0, 1, 4, 5)
    ((place, reason),) = batches[0].failed
    assert place == 2
    assert "2.png: not an image" in reason
    assert "5.png: expected [1, 4, 5] after preprocessing" in batches[1].failed[0][1]
    torch.testing.assert_close(batches[2].images, torch.full((1, 1, 4, 5), 6 / 255))


def test_the_first_readable_image(tmp_path):
    folder = make_folder(tmp_path, ["0.png", "1.png"])
    (folder / "0.png").write_bytes(b"broken")
    assert first_readable(open_set(folder), GREY)[0, 0, 0, 0] == pytest.approx(1 / 255)
    (folder / "1.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"No image of .* can be read; the first: .*0.png: not an"):
        first_readable(open_set(folder), GREY)
