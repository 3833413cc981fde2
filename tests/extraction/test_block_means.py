"""Channel means of each stage in the run, for every kind of network and recording."""

import pytest
import torch
from helpers.small_models import make_model
from torch import nn

import gradscore as gs
from gradscore.errors import NotRecorded
from gradscore.models import create_model
from gradscore.models.preprocessing import Preprocessing
from gradscore.run import check

SETS = {"digits": ("id", "digits:test")}


def recorded(run):
    parts = list(run.store.blocks("digits", ("index",), ("blocks",)))
    names = [name for name in parts[0] if name.startswith("blocks/")]
    return {n: torch.cat([torch.from_numpy(part[n]) for part in parts]) for n in names}


def outputs(model, modules, images):
    """Return what modules put out for images, by the name of the stage."""
    found = {}
    for stage, name in modules.items():

        def keep(module, args, output, stage=stage):
            found[stage] = output

        model.get_submodule(name).register_forward_hook(keep)
    with torch.no_grad():
        model(images)
    return found


def images_of(run, pre):
    from gradscore.data import open_set

    images = open_set("digits:test", limit=run.store.sets["digits"].rows)
    return torch.stack([pre(images[k]) for k in range(len(images))])


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("gradients", ["rules", "vmap", "reference"])
def test_means_over_space(tmp_path, layers, gradients):
    how = {"layers": layers, "gradients": gradients, "limit": 10, "batch_size": 4}
    run = gs.extract("digits", SETS, tmp_path / "run", **how)
    modules = run.store.info.passes["blocks"].details["modules"]
    model = create_model("digits").eval()
    expected = outputs(model, modules, images_of(run, model.preprocessing))
    found = recorded(run)
    assert list(found) == [f"blocks/{stage}" for stage in modules]
    for stage, output in expected.items():
        torch.testing.assert_close(found[f"blocks/{stage}"], output.mean(dim=(2, 3)))
    assert check(run.path) == []


def test_means_over_tokens_with_the_class_token(tmp_path):
    spec = "timm:vit_tiny_patch16_224?img_size=16&patch_size=8&num_classes=10"
    pre = Preprocessing(16, 16, (0.5,) * 3, (0.5,) * 3)
    model = create_model(spec, weights="random").eval()
    model.preprocessing = pre
    run = gs.extract(model, SETS, tmp_path / "run", layers="last", limit=8, batch_size=4)
    modules = run.store.info.passes["blocks"].details["modules"]
    assert list(modules.values()) == ["blocks.2", "blocks.5", "blocks.8", "blocks.11"]
    expected, found = outputs(model, modules, images_of(run, pre)), recorded(run)
    for stage, output in expected.items():
        assert output.shape == (8, 5, 192)
        torch.testing.assert_close(
            found[f"blocks/{stage}"], output.mean(dim=1), rtol=1e-4, atol=1e-5
        )


def test_a_network_without_stages_has_no_such_pass(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6)).eval()
    model.preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="L")
    run = gs.extract(model, SETS, tmp_path / "run", layers="last", limit=300)
    assert run.store.info.passes == {}
    with pytest.raises(NotRecorded, match="laplace_energy needs none"):
        run.score("digits", "laplace_energy_blocks")
    assert run.score("digits", "laplace_energy").isfinite().all()
    assert "laplace_energy" in {row.spec.method for row in gs.choose(run).near}


def test_a_pass_that_is_added_later_is_that_of_one_extraction(tmp_path):
    how = {"layers": "last", "limit": 12}
    run = gs.extract(make_model(), SETS, tmp_path / "run", **how)
    whole = recorded(run)
    with run.store.open_for_writing(run.path) as store:
        del store.info.passes["blocks"]
        for entry in store.info.sets.values():
            del entry.passes["blocks"]
        store.save()
    again = recorded(gs.extract(make_model(), SETS, tmp_path / "run", **how))
    torch.testing.assert_close(again, whole)
