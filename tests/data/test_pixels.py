"""Pixels that mean something else than 0 to 255 or 0 to 1 are refused; every layout is read."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import ResNet18_Weights

from gradscore.data import open_set
from gradscore.errors import DataError, InvalidArgument, ModelError
from gradscore.models import create_model
from gradscore.models.preprocessing import Preprocessing

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
PLAIN = Preprocessing(None, None, 0.0, 1.0)


def tensors(images):
    return torch.stack([PLAIN(image) for image in images])


EXPECTED = torch.from_numpy(COLOURS).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize(
    "images",
    [
        COLOURS,
        COLOURS.transpose(0, 3, 1, 2),
        COLOURS / 255,
        (COLOURS / 255).transpose(0, 3, 1, 2).astype(np.float32),
        np.concatenate([COLOURS, COLOURS[..., :1]], axis=3),
    ],
    ids=["last", "first", "float last", "float first", "alpha"],
)
@pytest.mark.parametrize("ending", [".npz", ".npy"])
def test_layouts(tmp_path, images, ending):
    path = tmp_path / f"s{ending}"
    np.save(path, images) if ending == ".npy" else np.savez(path, images=images)
    torch.testing.assert_close(tensors(open_set(path)), EXPECTED, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 255])
@pytest.mark.parametrize("axis", [None, 1, 3])
def test_grey_images(tmp_path, scale, axis):
    grey = COLOURS[..., 0] if scale == 1 else COLOURS[..., 0] / 255
    np.savez(tmp_path / "s.npz", images=grey if axis is None else np.expand_dims(grey, axis))
    expected = EXPECTED[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(tensors(open_set(tmp_path / "s.npz")), expected)


@pytest.mark.parametrize(
    ("images", "found", "remedy"),
    [
        (COLOURS.astype(np.float32), "float32 from 0 to 255", "divide by 255"),
        (COLOURS / 255 - 0.5, "float64 from -0.5 to 0.5", "store them before normalisation"),
        (COLOURS.astype(np.uint16) * 257, "uint16 from 0 to 65535", "the value that is white"),
        (COLOURS.astype(np.int64), "int64 from 0 to 255", r"images.astype\('uint8'\)\.$"),
        (COLOURS > 99, "bool from 0 to 1", r"images.astype\('uint8'\) \* 255"),
    ],
    ids=["0..255", "normalised", "16 bits", "integers", "bool"],
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_other_scales_are_refused_with_what_to_do(tmp_path, images, found, remedy, save):
    images[:2] = 0  # the first images tell nothing
    images[3, 0, 0] = images.min()
    images[3, 0, 1] = images.max()
    save(tmp_path / "s.npz", images=images)
    with pytest.raises(DataError, match=f"or floats in 0..1, in .*, got {found}; .*{remedy}"):
        open_set(tmp_path / "s.npz")


def test_rounding_beyond_the_range_is_none_of_it(tmp_path):
    images = np.clip(COLOURS / 255, 0, 1) * (1 + 1e-6)
    np.savez(tmp_path / "s.npz", images=images)
    assert len(open_set(tmp_path / "s.npz")) == 5


@pytest.mark.parametrize(
    ("resize", "crop"), [("32", 64), (None, 300), ("20", None), ("30x20", 25), ("40", (60, 50))]
)
def test_a_crop_beyond_the_resized_image_is_refused(resize, crop):
    with pytest.raises(InvalidArgument, match="Expected a crop within the resized image, got"):
        Preprocessing(256, 224, 0.5, 0.5).with_overrides(resize=resize, crop=crop)


@pytest.mark.parametrize(("resize", "crop"), [("32", 32), ("30x20", 20), ("40", (30, 90))])
def test_a_crop_within_is_taken(resize, crop):
    Preprocessing(256, 224, 0.5, 0.5).with_overrides(resize=resize, crop=crop)


class Transforms:
    """Some other library's."""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"resize": 32, "crop": 32, "mean": 0.5, "std": 0.25}, Preprocessing(32, 32, 0.5, 0.25)),
        (
            ResNet18_Weights.DEFAULT.transforms(),
            Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ),
        (None, Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    ],
    ids=["mapping", "torchvision", "none"],
)
def test_the_preprocessing_of_a_users_model(monkeypatch, own, expected):
    model = nn.Linear(2, 2)
    model.preprocessing = own
    monkeypatch.setattr(sys.modules[__name__], "make", lambda: model, raising=False)
    assert create_model(f"python:{__name__}:make").preprocessing == expected


@pytest.mark.parametrize("own", [Transforms(), nn.BatchNorm2d(3)])
def test_a_preprocessing_that_would_be_ignored_is_refused(monkeypatch, own):
    model = nn.Linear(2, 2)
    model.preprocessing = own
    monkeypatch.setattr(sys.modules[__name__], "make", lambda: model, raising=False)
    with pytest.raises(ModelError, match="a mapping of its fields"):
        create_model(f"python:{__name__}:make")


def medmnist(path, **more):
    arrays = {}
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        arrays[f"{part}_images"] = COLOURS[:count]
        arrays[f"{part}_labels"] = np.arange(count, dtype=np.uint8)[:, None]
    np.savez_compressed(path, **arrays, **more)


def test_parts_of_an_archive_of_arrays(tmp_path):
    medmnist(tmp_path / "med.npz")
    images = open_set(f"{tmp_path}/med.npz#test")
    assert images.labels.tolist() == [0, 1, 2]
    torch.testing.assert_close(tensors(images), EXPECTED[:3])
    train = open_set(f"{tmp_path}/med.npz#train")
    assert (len(train), train.sha256 == images.sha256) == (4, False)
    with pytest.raises(DataError, match=r"got train_images, .*choose by #train, #val, #test"):
        open_set(tmp_path / "med.npz")
    with pytest.raises(DataError, match="Expected a part 'dev' of images in"):
        open_set(f"{tmp_path}/med.npz#dev")
    np.savez(tmp_path / "k.npz", x_test=COLOURS[..., 0], y_test=[1, 2, 3, 4, 5], pixels=COLOURS)
    assert open_set(f"{tmp_path}/k.npz#test").labels.tolist() == [1, 2, 3, 4, 5]
    assert open_set(f"{tmp_path}/k.npz#pixels")[0].mode == "RGB"


@pytest.mark.parametrize(
    ("labels", "expected", "notice"),
    [
        (np.eye(5)[[3, 1, 0, 2, 4]], [3, 1, 0, 2, 4], ""),
        (np.array([[1, 1]] * 5), [-1] * 5, "labels are unknown: 2 values an image"),
        (np.array([1.0, 2.0, np.nan, 0.0, 1.0]), [1, 2, -1, 0, 1], ""),
        (np.array(["b", "a", "c", "a", "b"]), [1, 0, 2, 0, 1], "a = 0 to c = 2"),
        (np.array([b"b", b"a", b"c", b"a", b"b"]), [1, 0, 2, 0, 1], "a = 0 to c = 2"),
    ],
    ids=["one-hot", "several", "floats", "names", "bytes"],
)
def test_labels_of_arrays(tmp_path, labels, expected, notice):
    np.savez(tmp_path / "s.npz", x=COLOURS, y=labels)
    images = open_set(tmp_path / "s.npz", classes=3)
    assert images.labels.tolist() == expected
    assert notice in images.notice


def test_corrupted_images_and_their_severities(tmp_path):
    images = np.repeat(np.arange(10, dtype=np.uint8), 48).reshape(10, 4, 4, 3)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "labels.npy", np.tile([1, 0], 5))
    whole = open_set(tmp_path / "fog.npy")
    assert whole.labels.tolist() == [1, 0] * 5
    assert "labels of labels.npy" in whole.notice
    third = open_set(f"{tmp_path}/fog.npy#3")
    assert third.paths == ["fog.npy/4", "fog.npy/5"]
    assert [np.asarray(image)[0, 0, 0] for image in third] == [4, 5]
    assert third.labels.tolist() == [1, 0]
    for part in ("0", "6", "x"):
        with pytest.raises(DataError, match=f"Expected #1 to #5, .* got #{part} of 10 images"):
            open_set(f"{tmp_path}/fog.npy#{part}")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("v6_data", "v6_labels"),
        ("x_test", "y_test"),
        ("test_images", "test_labels"),
        ("a", "labels"),
    ],
)
def test_labels_stand_beside_an_array(tmp_path, images, labels):
    np.save(tmp_path / f"{images}.npy", COLOURS)
    assert open_set(tmp_path / f"{images}.npy").labels.tolist() == [-1] * 5
    np.save(tmp_path / f"{labels}.npy", np.arange(5))
    assert open_set(tmp_path / f"{images}.npy").labels.tolist() == [0, 1, 2, 3, 4]


def test_labels_beside_that_are_of_another_array(tmp_path):
    np.save(tmp_path / "noise.npy", COLOURS)
    np.save(tmp_path / "labels.npy", np.arange(9))
    images = open_set(tmp_path / "noise.npy")
    assert images.labels.tolist() == [-1] * 5
    assert images.notice == "labels are unknown: 9 stand beside 5 images"


def test_pictures_are_what_the_libraries_take_them_for():
    """Grey, palettes, transparency and CMYK become RGB as by Pillow's own conversion."""
    import io

    from gradscore.data.pictures import decode_image

    colours = Image.fromarray(COLOURS[0])
    palette = colours.convert("P")
    palette.info["transparency"] = 0
    for picture, kind in [
        (colours.convert("CMYK"), "TIFF"),
        (palette, "PNG"),
        (palette, "GIF"),
        (colours.convert("RGBA"), "PNG"),
        (colours.convert("LA"), "PNG"),
        (colours.convert("1"), "PNG"),
    ]:
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
        found = decode_image(buffer.getvalue(), "x").convert("RGB")
        np.testing.assert_array_equal(np.asarray(found), expected)
