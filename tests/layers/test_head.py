"""The last layer is found without being named, and only called so where it is proved to be."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from gradscore.errors import ModelError
from gradscore.layers.features import observe_features
from gradscore.layers.head import find_head
from gradscore.models import create_model

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Body(nn.Module):
    """A small body; what follows it is the case."""

    def __init__(self, after, **modules):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        for name, module in modules.items():
            setattr(self, name, module)
        self.after = after

    def forward(self, x):
        return self.after(self, F.relu(self.conv(x)))


def mean(x):
    return x.mean(dim=(2, 3))


def linear(**kwargs):
    return nn.Linear(6, 5, **kwargs)


class Cosine(nn.Linear):
    """A Linear by class, but not by what it computes."""

    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


class Bare(nn.Module):
    """A classifier without a module of its own."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 54))

    def forward(self, x):
        return x.flatten(1) @ self.table.T


def reused(model, x):
    return model.fc(model.fc(mean(x)).repeat(1, 2)[:, :6])


def tied(model, x):
    return model.fc(mean(x) + model.fc.weight.mean())


def averaged(model, x):
    return (model.fc(mean(x)) + model.other(mean(x) ** 2)) / 2


PROVED = {
    "linear": (lambda m, x: m.fc(mean(x)), {"fc": linear()}),
    "no-bias": (lambda m, x: m.fc(mean(x)), {"fc": linear(bias=False)}),
    "convolution": (
        lambda m, x: m.fc(mean(x)[:, :, None, None]).flatten(1),
        {"fc": nn.Conv2d(6, 5, 1)},
    ),
    "one-position": (lambda m, x: m.fc(mean(x)[:, None])[:, 0], {"fc": linear()}),
    "whole-map-convolution": (
        lambda m, x: m.fc(F.adaptive_avg_pool2d(x, 2)).flatten(1),
        {"fc": nn.Conv2d(6, 5, 2)},
    ),
    "dropout-after": (
        lambda m, x: m.drop(m.fc(mean(x))),
        {"fc": linear(), "drop": nn.Dropout(0.5)},
    ),
    "another-of-the-same-size": (
        lambda m, x: m.fc(F.relu(m.first(mean(x))).repeat(1, 2)[:, :6]),
        {"first": linear(), "fc": linear()},
    ),
}
LAST = {
    "cosine": "fc.weight",
    "tied": "table",
    "bare": "table",
}


@pytest.mark.parametrize("case", LAST)
def test_the_last_layer_of_bare_parameters_is_told_by_its_use(case):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table = nn.Parameter(torch.randn(5, 6))
            self.first = nn.Linear(192, 6)
            self.fc = Cosine(6, 5)

        def forward(self, x):
            h = self.first(x.flatten(1)).tanh()
            return {
                "cosine": lambda: 20 * self.fc(h),
                "tied": lambda: F.linear(h + self.table.mean(0), self.table),
                "bare": lambda: h @ self.table.T,
            }[case]()

    head = find_head(Net().eval(), IMAGES)
    assert head.weights == (LAST[case],)
    assert not head.closed_form


REFUSED = {
    "relu": (lambda m, x: F.relu(m.fc(mean(x))), {"fc": linear()}, "something follows it"),
    "inplace-relu": (lambda m, x: m.fc(mean(x)).relu_(), {"fc": linear()}, "follows it"),
    "scaled": (lambda m, x: 3 * m.fc(mean(x)), {"fc": linear()}, "something follows it"),
    "pooled": (
        lambda m, x: mean(m.fc(x)),
        {"fc": nn.Conv2d(6, 5, 1)},
        "several positions, on an input [3, 6, 3, 3]",
    ),
    "averaged": (averaged, {"fc": linear(), "other": linear()}, "something follows it"),
    "reused": (reused, {"fc": linear()}, "more than once"),
    "tied": (tied, {"fc": linear()}, "more than once"),
    "cosine": (lambda m, x: m.fc(mean(x)), {"fc": Cosine(6, 5)}, "something follows it"),
    "parametrised": (
        lambda m, x: m.fc(mean(x)),
        {"fc": parametrizations.weight_norm(linear())},
        "computed from other parameters (parametrised)",
    ),
    "bare-parameter": (lambda m, x: m.fc(x), {"fc": Bare()}, "no Linear or 1x1 convolution"),
}


@pytest.mark.parametrize("case", PROVED)
@pytest.mark.parametrize("start", ["drawn", "zero", "float64"])
def test_heads_that_are_products_are_proved(case, start):
    after, modules = PROVED[case]
    model = Body(after, **modules).eval()
    images = IMAGES.double() if start == "float64" else IMAGES
    model = model.double() if start == "float64" else model.float()
    saved = {name: x.clone() for name, x in model.state_dict().items()}
    if start == "zero":  # a head that starts at zero must neither hide nor fake the proof
        nn.init.zeros_(model.fc.weight)
    head = find_head(model, images)
    assert (head.closed_form, head.module, head.weights, head.reason) == (
        True,
        "fc",
        ("fc.weight",),
        "",
    )
    assert head.bias == ("fc.bias" if model.fc.bias is not None else None)
    with observe_features(model, head) as observed, torch.no_grad():
        logits = model(images)
    expected = F.linear(observed.features, model.fc.weight.flatten(1), model.fc.bias)
    torch.testing.assert_close(logits, expected)
    model.load_state_dict(saved)


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("start", ["drawn", "zero"])
def test_heads_that_are_none_are_refused_with_the_reason(case, start):
    after, modules, reason = REFUSED[case]
    model = Body(after, **modules).eval()
    saved = {}
    if start == "zero" and case not in ("bare-parameter", "parametrised"):
        for module in modules.values():  # all outputs zero: no comparison of them proves anything
            saved[module] = {n: x.clone() for n, x in module.state_dict().items()}
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    head = find_head(model, IMAGES)
    for module, state in saved.items():
        module.load_state_dict(state)
    assert not head.closed_form
    assert head.module is None
    assert reason in head.reason
    with pytest.raises(ModelError, match="no features to observe"), observe_features(model, head):
        pass


@pytest.mark.parametrize(
    ("case", "weights"),
    [
        ("relu", ("fc.weight",)),
        ("averaged", ("fc.weight", "other.weight")),
        (
            "parametrised",
            ("fc.parametrizations.weight.original0", "fc.parametrizations.weight.original1"),
        ),
    ],
)
def test_last_is_named_even_without_a_closed_form(case, weights):
    after, modules, _ = REFUSED[case]
    assert find_head(Body(after, **modules).eval(), IMAGES).weights == weights


@pytest.mark.parametrize(
    ("spec", "module"),
    [
        ("digits", "fc"),
        ("cifar:resnet20", "linear"),
        ("timm:test_vit", "head"),
        ("timm:test_resnet", "fc"),
        ("timm:lcnet_035", "classifier"),
        ("torchvision:squeezenet1_1", None),
        ("timm:efficientformer_l1", None),
    ],
)
def test_heads_of_the_libraries(spec, module):
    model = create_model(spec, "random")
    crop = model.preprocessing.crop
    channels = len(model.preprocessing.mean)
    side = crop if "efficientformer" in spec else min(crop, 160)
    head = find_head(model, torch.randn(2, channels, side, side))
    assert (head.module, head.closed_form) == (module, module is not None)


def test_a_linear_model_alone_is_its_own_head():
    head = find_head(nn.Linear(4, 3), torch.randn(2, 4))
    assert (head.module, head.weights, head.bias) == ("", ("weight",), "bias")


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (lambda y: (y, y), "a tuple"),
        (lambda y: {"output": y}, "a dict"),
        (lambda y: y[None], r"a torch.float32 tensor \[1, 3, 5\]"),
        (lambda y: y[:2], r"a torch.float32 tensor \[2, 5\]"),
        (lambda y: y.argmax(1), r"a torch.int64 tensor \[3\]"),
    ],
    ids=["tuple", "dict", "three-axes", "fewer-rows", "labels"],
)
def test_anything_but_logits_is_named(output, got):
    model = Body(lambda m, x: output(m.fc(mean(x))), fc=linear()).eval()
    with pytest.raises(ModelError, match=rf"logits \[3, classes\] for 3 images, .*, got {got}"):
        find_head(model, IMAGES)


def test_what_a_model_raises_is_told_with_the_images_that_it_got():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    message = r"float32 \[2, 3, 4, 4\] on cpu, got RuntimeError from it: mat1 and .*preprocessing"
    with pytest.raises(ModelError, match=message) as caught:
        find_head(model, torch.zeros(2, 3, 4, 4))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_training_mode_is_refused_and_statistics_stay():
    model = Body(lambda m, x: m.fc(mean(m.bn(x))), fc=linear(), bn=nn.BatchNorm2d(6)).train()
    with pytest.raises(ModelError, match="got layer 'bn' which takes them from the batch"):
        find_head(model, IMAGES)
    assert model.bn.num_batches_tracked == 0


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ModelError, match="a model with parameters"):
        find_head(nn.Flatten(), torch.randn(2, 3))


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_model_is_left_as_it_was_also_after_errors():
    model = Body(PROVED["linear"][0], fc=linear()).eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    head = find_head(model, IMAGES)
    with pytest.raises(RuntimeError, match="on purpose"), observe_features(model, head):
        raise RuntimeError("on purpose")
    with pytest.raises(ModelError, match="channels"):
        find_head(model, IMAGES[:, :2])
    assert hooks(model) == 0
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(x.grad is None and x.requires_grad for x in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_features_are_observed_in_every_mode(mode):
    model = Body(PROVED["linear"][0], fc=linear()).eval()
    head = find_head(model, IMAGES)
    with mode(), observe_features(model, head) as observed:
        with pytest.raises(ModelError, match="Expected a forward"):
            observed.features  # noqa: B018
        model(IMAGES[:1])
        logits = model(IMAGES)
        assert observed.features.shape == (3, 6)
        assert not observed.features.requires_grad
    torch.testing.assert_close(model.fc(observed.features.clone()), logits.clone())
    assert hooks(model) == 0
