"""Pictures become what torchvision's transforms on PIL pictures make of them, bit for bit."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms

from gradscore.errors import InvalidArgument
from gradscore.models.preprocessing import INTERPOLATIONS, Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height, width, mode="RGB", seed=0):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels)


def reference(resize, crop, interpolation="bilinear"):
    method = transforms.InterpolationMode(interpolation)
    steps = [] if resize is None else [transforms.Resize(resize, method)]
    steps += [] if crop is None else [transforms.CenterCrop(crop)]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (33, 33), (17, 90), (24, 24), (7, 9)])
@pytest.mark.parametrize(
    ("resize", "crop"),
    [(32, 24), (24, 24), (None, 24), (None, None), ((30, 20), 16), (9, (11, 30)), (25, (24, 8))],
)
def test_equals_torchvision(size, resize, crop):
    ours = Preprocessing(resize, crop, MEAN, STD)(picture(*size))
    torch.testing.assert_close(ours, reference(resize, crop)(picture(*size)), rtol=0, atol=0)
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation_equals_torchvision(interpolation):
    ours = Preprocessing(20, 16, MEAN, STD, interpolation)(picture(40, 61))
    expected = reference(20, 16, interpolation)(picture(40, 61))
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_a_uint8_array_is_the_picture_it_shows():
    prepare = Preprocessing(20, 16, MEAN, STD)
    for mode in ("RGB", "L"):
        image = picture(40, 61, mode)
        torch.testing.assert_close(prepare(np.asarray(image)), prepare(image), rtol=0, atol=0)
    grey = np.asarray(picture(8, 8, "L"))
    prepare = Preprocessing(8, 8, 0.5, 0.5, mode="L")
    assert prepare(grey).shape == (1, 8, 8)
    torch.testing.assert_close(prepare(grey[:, :, None]), prepare(grey), rtol=0, atol=0)


def test_a_floating_array_is_taken_as_scaled_already():
    image = picture(24, 24)
    array = (np.asarray(image, dtype=np.float64) / 255).transpose(2, 0, 1)
    kept = array.copy()
    prepare = Preprocessing(24, 16, MEAN, STD)
    torch.testing.assert_close(prepare(array), prepare(image))
    np.testing.assert_array_equal(array, kept)
    larger = Preprocessing(None, (30, 20), MEAN, STD)
    torch.testing.assert_close(larger(array), larger(image))


def test_a_floating_array_is_resized_much_as_its_picture():
    image = picture(40, 61).resize((61, 40)).filter(ImageFilter.BLUR)
    array = (np.asarray(image) / 255.0).transpose(2, 0, 1)
    prepare = Preprocessing(20, 16, 0.0, 1.0)
    torch.testing.assert_close(prepare(array), prepare(image), rtol=0, atol=1.5 / 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_pictures_of_any_mode_are_converted(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((9, 9), 0x8000, np.uint16))
    else:
        image = picture(9, 9).convert(mode)
    tensor = Preprocessing(None, None, 0.0, 1.0)(image)
    assert tensor.shape == (3, 9, 9)
    if mode == "I;16":
        torch.testing.assert_close(tensor, torch.full((3, 9, 9), 128 / 255))


def test_a_palette_with_transparency_gives_no_warning():
    image = picture(9, 9).convert("P")
    image.info["transparency"] = b"\x00" * 256
    assert Preprocessing(None, None, 0.0, 1.0)(image).shape == (3, 9, 9)


def test_overrides_replace_what_is_given():
    prepare = Preprocessing(256, 224, MEAN, STD, "bicubic")
    assert prepare.with_overrides() == prepare
    changed = prepare.with_overrides(
        resize="300x200", crop="180", mean=(0.5,), std=0.25, interpolation="bilinear"
    )
    assert changed == Preprocessing((300, 200), 180, (0.5,) * 3, (0.25,) * 3, "bilinear")
    assert prepare.with_overrides(resize="320").resize == 320
    assert prepare.with_overrides(crop=(8, 8)).crop == 8


@pytest.mark.parametrize(
    "prepare",
    [
        Preprocessing(256, 224, MEAN, STD),
        Preprocessing((300, 200), (30, 20), 0.5, 0.5, "bicubic", "L"),
        Preprocessing(None, None, MEAN, STD),
    ],
)
def test_it_survives_json(prepare):
    text = json.dumps(prepare.to_dict())
    assert Preprocessing.from_dict(json.loads(text)) == prepare


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": "big"}, "Expected resize as S or HxW in pixels, got 'big'"),
        ({"resize": "10x"}, "Expected resize"),
        ({"crop": 0}, "Expected crop as S or HxW in pixels, got 0"),
        ({"crop": (1, 2, 3)}, "Expected crop"),
        ({"resize": True}, "Expected resize"),
        ({"mean": (0.1, 0.2)}, r"Expected mean with 3 numbers or one, got \(0.1, 0.2\)"),
        ({"mean": "abc"}, "Expected mean"),
        ({"std": (1, 1, float("nan"))}, "Expected std"),
        ({"std": 0}, "Expected std > 0"),
        ({"interpolation": "cubic"}, "Expected interpolation nearest, .*, got 'cubic'"),
        ({"mode": "HSV"}, "Expected mode RGB or L, got 'HSV'"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    given = {"resize": 256, "crop": 224, "mean": MEAN, "std": STD} | fields
    with pytest.raises(InvalidArgument, match=message):
        Preprocessing(**given)


def test_an_unknown_recorded_field_is_refused():
    fields = Preprocessing(256, 224, MEAN, STD).to_dict()
    with pytest.raises(InvalidArgument, match="unexpected keyword argument 'gamma'"):
        Preprocessing.from_dict(fields | {"gamma": 2})


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8,), np.uint8),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.float32),
    ],
    ids=["four-channels", "flat", "integers", "channels-last-floats", "grey-floats"],
)
def test_arrays_of_another_form_are_refused(array):
    with pytest.raises(InvalidArgument, match="picture"):
        Preprocessing(None, None, MEAN, STD)(array)


@pytest.mark.parametrize(
    ("resize", "crop", "mode", "shape"),
    [
        (256, 224, "RGB", (3, 224, 224)),
        ((40, 30), None, "L", (1, 40, 30)),
        (50, (20, 10), "RGB", (3, 20, 10)),
        (None, None, "L", (1, 60, 60)),
    ],
)
def test_the_shape_of_an_input_is_known_beforehand(resize, crop, mode, shape):
    prepare = Preprocessing(resize, crop, 0.5, 0.5, mode=mode)
    assert prepare.input_shape(60) == shape
    assert prepare(np.zeros((60, 60), np.uint8)).shape == shape
