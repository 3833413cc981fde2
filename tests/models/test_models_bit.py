"""BiT weights in Google's and in the paper's naming give what a plain forward of them gives."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gradscore.errors import ModelError, WeightsError
from gradscore.models import create_model, families
from gradscore.models.weights import Weights, fit_weights

FAMILY = {
    "BiT-S-R50x1": ((3, 4, 6, 3), 1),
    "BiT-S-R101x1": ((3, 4, 23, 3), 1),
    "BiT-S-R50x3": ((3, 4, 6, 3), 3),
    "BiT-S-R152x2": ((3, 8, 36, 3), 2),
    "BiT-S-R101x3": ((3, 4, 23, 3), 3),
}


FULL = {"stem": 64, "channels": (256, 512, 1024, 2048), "classes": 1000}
SLIM = {"stem": 32, "channels": (128, 128, 128, 128), "classes": 5}
"""The fewest channels that the 32 groups of the norms allow."""


def shapes(depths, width, size):
    """Yield each tensor in the paper's naming and its OIHW shape, from the architecture alone."""
    inner, classes = size["stem"] * width, size["classes"]
    yield "root.conv.weight", (inner, 3, 7, 7)
    for stage, depth in enumerate(depths):
        outer = size["channels"][stage] * width
        middle = outer // 4
        for unit in range(depth):
            at = f"body.block{stage + 1}.unit{unit + 1:02d}"
            for number, channels in ((1, inner), (2, middle), (3, middle)):
                yield f"{at}.gn{number}.weight", (channels,)
                yield f"{at}.gn{number}.bias", (channels,)
            yield f"{at}.conv1.weight", (middle, inner, 1, 1)
            yield f"{at}.conv2.weight", (middle, middle, 3, 3)
            yield f"{at}.conv3.weight", (outer, middle, 1, 1)
            if unit == 0:
                yield f"{at}.downsample.weight", (outer, inner, 1, 1)
            inner = outer
    yield "before_head.gn.weight", (inner,)
    yield "before_head.gn.bias", (inner,)
    yield "head.conv.weight", (classes, inner, 1, 1)
    yield "head.conv.bias", (classes,)


def google_name(name):
    """Return a tensor's name in Google's archives for its name in the paper's checkpoint."""
    last = name.rsplit(".", 1)[-1]
    gn = {"weight": "gamma", "bias": "beta"}
    if name.startswith("root"):
        return "resnet/root_block/standardized_conv2d/kernel"
    if name.startswith("before_head"):
        return f"resnet/group_norm/{gn[last]}"
    if name.startswith("head"):
        return f"resnet/head/conv2d/{'kernel' if last == 'weight' else 'bias'}"
    _, block, unit, layer, _ = name.split(".")
    at = f"resnet/{block}/{unit}"
    if layer == "downsample":
        return f"{at}/a/proj/standardized_conv2d/kernel"
    part = "abc"[int(layer[-1]) - 1]
    return f"{at}/{part}/" + (
        f"group_norm/{gn[last]}" if layer.startswith("gn") else "standardized_conv2d/kernel"
    )


def drawn(depths, width, size):
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes(depths, width, size):
        x = torch.randn(shape, generator=rng)
        if ".gn" in name:
            x = 0.2 * x + (1 if name.endswith("weight") else 0)
        elif "head" not in name:  # small enough for the epsilon of the standardisation to show
            x = x * 1e-4
        tensors[name] = x * 0.02 if name.startswith("head") else x
    return tensors


def as_google(tensors):
    return {
        google_name(name): (x.permute(2, 3, 1, 0) if x.ndim == 4 else x).contiguous()
        for name, x in tensors.items()
    }


def plain_forward(w, depths, x):
    """Return the logits of the paper's tensors: nothing but functions, in the type of ``x``."""
    w = {name: tensor.to(x) for name, tensor in w.items()}

    def conv(x, name, stride=1, padding=0):
        k = w[f"{name}.weight"]
        k = k - k.mean(dim=(1, 2, 3), keepdim=True)
        k = k / ((k**2).mean(dim=(1, 2, 3), keepdim=True) + 1e-10).sqrt()
        return F.conv2d(x, k, stride=stride, padding=padding)

    def norm(x, name):
        return F.relu(F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5))

    x = F.pad(conv(x, "root.conv", stride=2, padding=3), (1, 1, 1, 1))
    x = F.max_pool2d(x, 3, stride=2)
    for stage, depth in enumerate(depths):
        for unit in range(depth):
            at = f"body.block{stage + 1}.unit{unit + 1:02d}"
            stride = 2 if stage and not unit else 1
            inside = norm(x, f"{at}.gn1")
            if unit == 0:
                x = conv(inside, f"{at}.downsample", stride)
            inside = norm(conv(inside, f"{at}.conv1"), f"{at}.gn2")
            inside = norm(conv(inside, f"{at}.conv2", stride, padding=1), f"{at}.gn3")
            x = x + conv(inside, f"{at}.conv3")
    x = norm(x, "before_head.gn").mean(dim=(2, 3))
    return x @ w["head.conv.weight"].flatten(1).T + w["head.conv.bias"]


NAMINGS = ["paper", "google"]


def saved(tensors, naming, folder):
    """Write the tensors as the paper's checkpoint or Google's archive holds them."""
    if naming == "paper":
        path = folder / "flat-finetune.pth.tar"
        wrapped = {f"module.{key}": value for key, value in tensors.items()}
        torch.save({"step": 7, "model": wrapped, "optim": {"state": {}}}, path)
    else:
        path = folder / "weights.npz"
        np.savez(path, **{key: value.numpy() for key, value in as_google(tensors).items()})
    return path


def assert_logits_are_those_of_a_plain_forward(model, tensors, depths):
    x = torch.randn(2, 3, 48, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.inference_mode():
        logits, expected = model.double()(x), plain_forward(tensors, depths, x)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("naming", NAMINGS)
def test_logits_are_those_of_a_plain_forward(tmp_path, naming):
    depths, width = FAMILY["BiT-S-R101x1"]
    tensors = drawn(depths, width, FULL)
    model = create_model("bit:BiT-S-R101x1", saved(tensors, naming, tmp_path))
    assert_logits_are_those_of_a_plain_forward(model, tensors, depths)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_member_made_slim_gives_the_logits_of_a_plain_forward(tmp_path, name, naming):
    depths, width = FAMILY[name]
    tensors = drawn(depths, width, SLIM)
    spec = f"bit:{name}?num_classes=5&stem_chs=32&channels={SLIM['channels']}"
    model = create_model(spec, saved(tensors, naming, tmp_path))
    assert_logits_are_those_of_a_plain_forward(model, tensors, depths)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("naming", NAMINGS)
def test_every_member_takes_all_tensors_of_either_naming(name, naming):
    depths, width = FAMILY[name]
    with torch.device("meta"):
        model, _ = families.build_bit(name, {}, pretrained=False)
        tensors = {key: torch.empty(shape) for key, shape in shapes(depths, width, FULL)}
    if naming == "google":
        tensors = as_google(tensors)
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in families.bit_names(tensors).items()} == own


def test_a_head_of_another_size_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    tensors = as_google(drawn(*FAMILY["BiT-S-R50x1"], FULL | {"classes": 7}))
    np.savez(path, **{key: value.numpy() for key, value in tensors.items()})
    with pytest.raises(
        WeightsError, match=r"2 of another shape: head.fc.weight \(expected \[1000"
    ):
        create_model("bit:BiT-S-R50x1", path)


def test_a_tensor_that_fits_no_name_is_listed(tmp_path):
    tensors = as_google(drawn(*FAMILY["BiT-S-R50x1"], FULL))
    tensors["resnet/block9/extra"] = tensors.pop("resnet/group_norm/beta")
    tensors["step"] = torch.zeros(())  # not of the network: left out
    model, _ = families.build_bit("BiT-S-R50x1", {}, pretrained=False)
    with pytest.raises(WeightsError, match=r"1 missing: norm\.bias; 1 unexpected: block9"):
        fit_weights(model, Weights(tensors, "archive"), families.bit_names)


def test_preprocessing_is_that_of_the_paper():
    prepare = create_model("bit:BiT-S-R50x1", "random").preprocessing
    assert prepare.resize == (480, 480)
    assert prepare.crop == 480
    assert prepare.mean == prepare.std == (0.5, 0.5, 0.5)


def test_without_weights_the_error_says_what_to_give():
    with pytest.raises(WeightsError, match=r"`weights='FILE'` \(Google's BiT-S-R101x1.npz"):
        create_model("bit:BiT-S-R101x1")


def test_an_unknown_member_lists_the_known():
    with pytest.raises(ModelError, match="one of BiT-S-R50x1, BiT-S-R101x1"):
        create_model("bit:BiT-L", "random")
