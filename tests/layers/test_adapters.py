"""Of a last layer with an adapter, ``last`` is the weight that merging leaves, or refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import gradscore as gs
from gradscore.data import open_set
from gradscore.errors import ModelError
from gradscore.layers.head import find_head

IMAGES = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A small body and the last layer."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Linear(6, 4), head

    def forward(self, x):
        return self.head(self.body(x).tanh())


class LoRA(nn.Module):
    """A frozen Linear and two thin ones whose product adds to it, as peft builds it."""

    def __init__(self, scale=2.0, first=False, dropout=0.1, rank=2):
        super().__init__()
        torch.manual_seed(2)
        self.base_layer = nn.Linear(4, 5).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, 5, bias=False)})
        self.scale, self.first, self.dropout = scale, first, nn.Dropout(dropout)

    def added(self, x):
        return self.lora_B["default"](self.lora_A["default"](self.dropout(x))) * self.scale

    def forward(self, x):
        if self.first:
            return self.added(x) + self.base_layer(x)
        return self.base_layer(x) + self.added(x)

    def merged(self):
        """Return the Linear that merging leaves."""
        layer = nn.Linear(4, 5).double()
        with torch.no_grad():
            product = self.lora_B["default"].weight @ self.lora_A["default"].weight
            layer.weight.copy_(self.base_layer.weight + self.scale * product)
            layer.bias.copy_(self.base_layer.bias)
        return layer


class ScaledInside(LoRA):
    """Scales between the thin layers."""

    def added(self, x):
        return self.lora_B["default"](self.scale * self.lora_A["default"](x))


class Product(LoRA):
    """Multiplies the thin layers with each other first."""

    def added(self, x):
        product = self.lora_B["default"].weight @ self.lora_A["default"].weight
        return F.linear(x, self.scale * product)


class Bare(LoRA):
    """Multiplies with the thin matrices' transposes."""

    def added(self, x):
        thin = x @ self.lora_A["default"].weight.T @ self.lora_B["default"].weight.T
        return thin * self.scale


class OneWeight(LoRA):
    """Makes the sum of the weights in each forward."""

    def forward(self, x):
        product = self.lora_B["default"].weight @ self.lora_A["default"].weight
        return F.linear(x, self.base_layer.weight + self.scale * product, self.base_layer.bias)


class Magnitude(LoRA):
    """Scales each output of the sum, as DoRA does."""

    def __init__(self):
        super().__init__()
        self.magnitude = nn.Parameter(torch.rand(5) + 1)

    def forward(self, x):
        return self.magnitude * super().forward(x)


class MagnitudeOfWeight(OneWeight):
    """Makes DoRA's weight in each forward."""

    def __init__(self):
        super().__init__()
        self.magnitude = nn.Parameter(torch.rand(5, 1) + 1)

    def forward(self, x):
        product = self.lora_B["default"].weight @ self.lora_A["default"].weight
        weight = F.normalize(self.base_layer.weight + product, dim=1)
        return F.linear(x, self.magnitude * weight, self.base_layer.bias)


class Bent(LoRA):
    """An adapter that is not linear: no weight equals the two."""

    def added(self, x):
        return self.lora_B["default"](self.lora_A["default"](x).relu())


class Two(LoRA):
    """Two last layers, neither of which is an adapter."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(4, 5)

    def forward(self, x):
        return (self.base_layer(x) + self.other(x)) / 2


class Added(nn.Module):
    """LoRA as a parametrisation."""

    def __init__(self, lora):
        super().__init__()
        self.lora_A = nn.Parameter(lora.lora_A["default"].weight.detach().clone())
        self.lora_B = nn.Parameter(lora.lora_B["default"].weight.detach().clone())

    def forward(self, weight):
        return weight + 2 * self.lora_B @ self.lora_A


def parametrised():
    lora = LoRA()
    layer = nn.Linear(4, 5)
    layer.load_state_dict(lora.base_layer.state_dict())
    parametrize.register_parametrization(layer, "weight", Added(lora))
    layer.merged = lora.double().merged
    return layer


MERGED = {
    "as-peft-builds-it": LoRA,
    "of-scale-one": lambda: LoRA(scale=1.0),
    "of-rank-one": lambda: LoRA(rank=1),
    "adapter-first": lambda: LoRA(first=True),
    "scaled-inside": ScaledInside,
    "product": Product,
    "transposes": Bare,
    "one-weight": OneWeight,
    "parametrised": parametrised,
}


@pytest.mark.parametrize("case", MERGED)
def test_last_is_the_weight_that_merging_leaves(case):
    model = Net(MERGED[case]()).double().eval()
    (name,) = find_head(model, IMAGES).weights
    assert name in ("head.base_layer.weight", "head.parametrizations.weight.original")
    merged = Net(model.head.merged()).double().eval()
    merged.body = model.body
    torch.testing.assert_close(model(IMAGES), merged(IMAGES))
    expected = gs.GradNorm(merged)(IMAGES)
    torch.testing.assert_close(gs.GradNorm(model)(IMAGES), expected)
    found = gs.gradient_norms(model, IMAGES, layers="last")
    assert found.parameters == (name,)
    torch.testing.assert_close(found.group("last"), expected)
    torch.testing.assert_close(gs.gradient_norms(model, IMAGES).group("last"), expected)


@pytest.mark.parametrize("make", [Magnitude, MagnitudeOfWeight])
def test_what_no_parameter_holds_is_refused_by_name(make):
    model = Net(make()).double().eval()
    message = r"made of .*head\.base_layer\.weight, .*; merge the adapter into the weight first"
    for call in (gs.GradNorm(model), lambda x: gs.gradient_norms(model, x, layers="last")):
        with pytest.raises(ModelError, match=message):
            call(IMAGES)
    names = tuple(name for name, _ in model.named_parameters())
    assert gs.gradient_norms(model, IMAGES).parameters == names


@pytest.mark.parametrize(
    ("make", "weights"),
    [
        (Bent, ("base_layer.weight", "lora_B.default.weight")),
        (Two, ("base_layer.weight", "other.weight")),
        (
            lambda: parametrizations.weight_norm(nn.Linear(4, 5)),
            ("parametrizations.weight.original0", "parametrizations.weight.original1"),
        ),
        (
            lambda: parametrizations.spectral_norm(nn.Linear(4, 5)).eval(),
            ("parametrizations.weight.original",),
        ),
    ],
    ids=["not-linear", "two-layers", "weight-norm", "spectral-norm"],
)
def test_what_is_no_adapter_keeps_its_weights(make, weights):
    model = Net(make()).double().eval()
    assert find_head(model, IMAGES).weights == tuple(f"head.{name}" for name in weights)


def test_only_the_layers_nearest_to_the_logits_are_last():
    model = Net(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU()))
    assert find_head(model.double().eval(), IMAGES).weights == ("head.2.weight",)


def test_a_run_records_the_weight_that_merging_leaves(tmp_path):
    def classifier(head):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), head).eval()
        model.preprocessing = gs.create_model("digits").preprocessing
        return model

    model = classifier(LoRA())
    merged = nn.Sequential(*model[:2], model[2].double().merged()).float().eval()
    model, sets = model.float(), {"digits": ("ood", "digits:test")}
    run = gs.extract(model, sets, tmp_path / "run", layers="last", limit=6)
    images = open_set("digits:test", limit=6)
    batch = torch.stack([model.preprocessing(images[k]) for k in range(6)])
    scores = run.score("digits", layers="last").float()
    torch.testing.assert_close(scores, gs.GradNorm(merged)(batch), rtol=1e-5, atol=0)
    with pytest.raises(ModelError, match="merge the adapter into the weight first"):
        gs.extract(classifier(Magnitude()), sets, tmp_path / "other", layers="last", limit=6)
