"""A choice for transformers with drawn weights: block means, scores and tables."""

import json

import numpy as np
import pytest
import torch

import gradscore as gs
from gradscore.choosing import choose
from gradscore.models import create_model
from gradscore.models.preprocessing import Preprocessing
from gradscore.run import check

IMAGES = 160


def vit_tiny(folder):
    model = create_model(
        "timm:vit_tiny_patch16_224?img_size=16&patch_size=8&num_classes=10&embed_dim=48&depth=4",
        weights="random",
    )
    model.preprocessing = Preprocessing(16, 16, (0.5,) * 3, (0.5,) * 3)
    return model.eval(), 48


def huggingface_vit(folder):
    import transformers

    torch.manual_seed(5)
    small = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2}
    names = {"id2label": dict(enumerate("abcdefghij")), "label2id": {}}
    config = transformers.ViTConfig(
        **small, **names, intermediate_size=32, image_size=16, patch_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return create_model(f"hf:{folder}"), 24


@pytest.mark.parametrize("make", [vit_tiny, huggingface_vit])
def test_block_means_have_the_width_of_the_tokens_and_every_score_is_finite(make, tmp_path):
    (tmp_path / "model").mkdir()
    model, width = make(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 255, (IMAGES, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=pixels)
    how = {"layers": "last", "record": "surrogates", "batch_size": 32}
    run = gs.extract(model, {"mine": ("id", tmp_path / "mine.npz")}, tmp_path / "run", **how)
    channels = run.store.info.passes["blocks"].details["channels"]
    assert channels == {f"block{stage}": width for stage in range(1, 5)}
    (block,) = run.store.blocks("mine", ("features", "logits"), ("blocks",))
    assert block["features"].shape == (IMAGES, width)
    assert all(block[f"blocks/{stage}"].shape == (IMAGES, width) for stage in channels)
    for two_sided in (False, True):
        scores = run.score("mine", "laplace_energy_blocks", two_sided=two_sided)
        assert scores.shape == (IMAGES,)
        assert scores.isfinite().all()
        assert len(scores.unique()) == IMAGES
    choice = choose(run)
    assert {row.spec.method for row in choice.far} >= {"laplace_energy_blocks", "vim", "knn"}
    figures = [figure for row in choice.far for figure in row.ranked.aurocs.values()]
    assert all(0 <= figure <= 1 for figure in figures)
    assert choice.warning is not None  # nothing was learned, and so nothing is known
    assert check(run.path) == []
