"""Classifiers of transformers: weights, class names and pixels are those of their folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from gradscore.errors import ModelError, WeightsError
from gradscore.models import create_model
from gradscore.models.libraries import PROXIES, reachable

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
SQUARE = {"height": 32, "width": 32}
NAMES = {0: "cat", 1: "dog", 2: "frog"}
SHORT = {"shortest_edge": 40}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a small ViT of three classes and its processor."""
    place = tmp_path_factory.mktemp("vit")
    torch.manual_seed(5)
    config = transformers.ViTConfig(**SMALL, id2label=NAMES, label2id={})
    transformers.ViTForImageClassification(config).save_pretrained(place)
    with_processor(place, "ViT", size=SQUARE)
    return place


def with_processor(place, kind, **settings):
    content = {"image_processor_type": f"{kind}ImageProcessor", **settings}
    (place / "preprocessor_config.json").write_text(json.dumps(content))
    return place


def copied(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_folder_gives_the_model_its_names_and_its_logits(folder):
    model = create_model(f"hf:{folder}")
    expected = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, expected(images).logits)
    assert model.class_names == ("cat", "dog", "frog")
    assert model.spec == f"hf:{folder}"
    assert not model.training


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViT", {"size": SQUARE}),
        ("ViT", {"size": SQUARE, "resample": 3, "do_normalize": False}),
        ("ViT", {"size": 32, "image_mean": [0.1, 0.2, 0.3], "rescale_factor": 1 / 127.5}),
        ("DeiT", {"size": {"height": 45, "width": 45}, "crop_size": SQUARE}),
        ("CLIP", {"size": SHORT, "crop_size": SQUARE, "do_convert_rgb": True}),
        ("Bit", {"size": SHORT, "crop_size": {"height": 33, "width": 33}}),
        ("MobileNetV2", {"size": SHORT, "crop_size": {"height": 48, "width": 35}}),
        ("ConvNext", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
        ("ConvNext", {"size": {"shortest_edge": 384}}),
        ("Levit", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}),
        ("EfficientNet", {"size": SQUARE, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
        ("Siglip", {"size": SQUARE, "do_rescale": False}),
    ],
)
def test_pixels_are_those_of_the_processor(folder, tmp_path, kind, settings):
    place = with_processor(copied(folder, tmp_path), kind, **settings)
    prepare = create_model(f"hf:{place}").preprocessing
    processor = transformers.AutoImageProcessor.from_pretrained(place, backend="pil")
    for shape in ((50, 61, 3), (71, 40, 3), (20, 24, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        picture = Image.fromarray(pixels)
        expected = processor(picture, return_tensors="pt")["pixel_values"][0].float()
        torch.testing.assert_close(prepare(picture), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("ViT", {"size": SQUARE, "sharpen": 2}, "unknown keys sharpen"),
        ("MobileViT", {"size": SHORT}, "expected a processor of ViT, .*, got MobileViT"),
        ("Beit", {"size": SQUARE, "do_reduce_labels": True}, "do_reduce_labels false"),
        ("ViT", {"size": {"shortest_edge": 4, "longest_edge": 9}}, "height and width or short"),
        ("ConvNext", {"size": SHORT, "do_center_crop": True, "crop_size": 32}, "beside crop_pct"),
    ],
)
def test_preprocessing_that_cannot_be_mapped_is_refused(folder, tmp_path, kind, settings, message):
    place = with_processor(copied(folder, tmp_path), kind, **settings)
    with pytest.raises(ModelError, match=rf"preprocessor_config.json of hf:.*{message}"):
        create_model(f"hf:{place}")


def test_a_folder_without_a_head_is_refused(tmp_path, folder):
    place = with_processor(tmp_path, "ViT", size=SQUARE)
    transformers.ViTModel(transformers.ViTConfig(**SMALL)).save_pretrained(place)
    with pytest.raises(WeightsError, match=r"lack classifier\.bias, classifier\.weight"):
        create_model(f"hf:{place}")


def test_a_folder_without_processor_or_model_is_refused(tmp_path, folder):
    place = copied(folder, tmp_path)
    (place / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"Expected preprocessor_config\.json in hf:"):
        create_model(f"hf:{place}")
    (place / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"Cannot load hf:.* save_pretrained wrote"):
        create_model(f"hf:{place}")


def test_weights_may_be_drawn_or_come_from_a_file(folder, tmp_path):
    drawn = create_model(f"hf:{folder}", "random").state_dict()
    own = create_model(f"hf:{folder}").state_dict()
    torch.save(own, tmp_path / "w.pth")
    given = create_model(f"hf:{folder}", tmp_path / "w.pth").state_dict()
    assert all(torch.equal(own[name], given[name]) for name in own)
    assert not torch.equal(own["classifier.weight"], drawn["classifier.weight"])


@pytest.mark.parametrize("spec", ["hf:nobody/nothing", "timm:resnet18"])
def test_offline_the_hub_is_looked_for_once(monkeypatch, spec):
    from huggingface_hub import constants

    asked = []

    def unknown(host, *args, **kwargs):
        asked.append(host)
        raise OSError("name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nonexistent")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(WeightsError, match=r"weights='FILE'|save_pretrained"):
        create_model(spec)
    assert len(asked) == 1
    assert not constants.HF_HUB_OFFLINE


def test_a_proxy_may_know_the_hub(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "proxy:1")
    assert reachable("https://nowhere.invalid")
