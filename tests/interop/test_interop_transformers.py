"""GradNorm beside the labels of an image classification pipeline of transformers."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import gradscore as gs
from gradscore.interop.transformers import ScoredImageClassificationPipeline

NAMES = {0: "cat", 1: "dog", 2: "frog"}


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(5)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(
        **small, intermediate_size=32, image_size=32, patch_size=8, id2label=NAMES, label2id={}
    )
    size = {"height": 32, "width": 32}
    processor = transformers.ViTImageProcessor(size=size)
    return {
        "model": transformers.ViTForImageClassification(config).train(),
        "image_processor": processor,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(3)]


@pytest.mark.parametrize("layers", ["last", "block1"])
def test_every_answer_holds_the_score_of_its_image(parts, pictures, layers):
    pipe = ScoredImageClassificationPipeline(**parts, layers=layers, p=2.0)
    assert not pipe.model.training
    plain = transformers.ImageClassificationPipeline(**parts)
    found, labels = pipe(pictures), plain(pictures)
    inputs = parts["image_processor"](images=pictures, return_tensors="pt")["pixel_values"]
    expected = gs.GradNorm(parts["model"], layers=layers, p=2.0)(inputs)
    for answers, known, score in zip(found, labels, expected.tolist(), strict=True):
        assert [{k: a[k] for k in ("label", "score")} for a in answers] == known
        assert [a["gradnorm"] for a in answers] == [pytest.approx(score, rel=1e-5)] * 3


def test_batches_and_options_are_those_of_the_pipeline(parts, pictures):
    pipe = ScoredImageClassificationPipeline(**parts)
    one_by_one, together = pipe(pictures, top_k=1), pipe(pictures, top_k=1, batch_size=3)
    assert [len(answers) for answers in together] == [1, 1, 1]
    for one, other in zip(one_by_one, together, strict=True):
        assert one[0]["label"] == other[0]["label"]
        assert one[0]["gradnorm"] == pytest.approx(other[0]["gradnorm"], rel=1e-5)
    assert pipe(pictures[0])[0].keys() == {"label", "score", "gradnorm"}
