"""One forward and one backward must give what one backward a sample gives, and leave no trace."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradscore import GradNorm
from gradscore.capture.recording import record
from gradscore.engine import gradient_norms
from gradscore.errors import InvalidArgument, ModelError
from gradscore.norms import combine_norms
from gradscore.objective import Objective
from gradscore.reference import one_backward_a_sample


def small_net(channels=4, kernel=3, stride=1, groups=1, norm="batch", act="relu", classes=3):
    torch.manual_seed(0)
    norms = {
        "batch": nn.BatchNorm2d(channels),
        "group": nn.GroupNorm(2, channels),
        "instance": nn.InstanceNorm2d(channels, affine=True),
        "none": nn.Identity(),
    }
    acts = {"relu": nn.ReLU(inplace=True), "gelu": nn.GELU(), "prelu": nn.PReLU(channels)}
    net = nn.Sequential(
        nn.Conv2d(2, channels, kernel, stride, padding=kernel // 2, groups=groups),
        norms[norm],
        acts[act],
        nn.Conv2d(channels, channels, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * channels, classes),
    )
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net.double().eval()


def selected(model, names):
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in names}


def images(batch=3, size=6):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, size, size, generator=rng, dtype=torch.float64)


def state(model):
    return {
        "flags": [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()],
        "values": {name: x.tolist() for name, x in model.state_dict().items()},
        "modules": [(m.training, len(m._forward_hooks), sorted(vars(m))) for m in model.modules()],
    }


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    size=st.integers(3, 7),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    norm=st.sampled_from(["batch", "group", "instance", "none"]),
    act=st.sampled_from(["relu", "gelu", "prelu"]),
    p=st.sampled_from([0.3, 1.0, 2.0, math.inf]),
    temperature=st.sampled_from([0.5, 1.0, 100.0]),
    target=st.sampled_from(["uniform", "one-hot"]),
)
def test_small_nets_drawn(batch, size, kernel, stride, groups, norm, act, p, temperature, target):
    model = small_net(kernel=kernel, stride=stride, groups=groups, norm=norm, act=act)
    how = {"p": p, "temperature": temperature, "target": target}
    got = gradient_norms(model, images(batch, size + 2), **how)
    expected = one_backward_a_sample(model, images(batch, size + 2), Objective(**how))
    atol = 1e-12 * float(expected.norms.max()) ** min(1.0, p)
    if p < 1 and norm == "instance":
        return  # the bias before an instance norm has no gradient but rounding
    torch.testing.assert_close(got.norms, expected.norms, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_leaves_the_model_as_it_was_in_every_mode(frozen, mode):
    model = small_net().requires_grad_(not frozen)
    expected, before = one_backward_a_sample(model, images()).norms, state(model)
    with mode():
        got = gradient_norms(model, images() + 0)
    torch.testing.assert_close(got.norms, expected)
    assert state(model) == before
    assert not got.norms.requires_grad


def test_leaves_the_model_as_it_was_after_an_exception():
    class Broken(nn.Module):
        def forward(self, x):
            raise KeyError("broken")

    model = nn.Sequential(small_net(), Broken()).requires_grad_(False)
    with pytest.raises(ModelError, match=r"got KeyError from it: .broken"):
        gradient_norms(model, images())
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.ones(2, requires_grad=True).mul(2).requires_grad  # no mode is left behind


@pytest.mark.parametrize("layers", ["all", "last", "0.*"])
def test_an_empty_batch_has_no_norms(layers):
    got = gradient_norms(small_net(), images(0), layers=layers)
    assert got.norms.shape == (0, len(got.parameters)) != (0, 0)
    assert got.group(layers).shape == (0,)


@pytest.mark.parametrize("part_bytes", [1 << 25, 1])
def test_the_logits_come_with_the_norms(monkeypatch, part_bytes):
    monkeypatch.setattr("gradscore.network.batches.RESULT_BYTES", part_bytes)
    model = small_net()
    logits = gradient_norms(model, images()).logits
    torch.testing.assert_close(logits, model(images()).detach())
    assert not logits.requires_grad


def test_an_unused_parameter_has_norm_zero():
    model = small_net()
    model.register_parameter("idle", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    got = gradient_norms(model, images())
    assert got.rules["idle"] == "unused"
    assert (got.norms[:, got.parameters.index("idle")] == 0).all()


def test_the_backward_stops_at_the_first_selected_use():
    model, ran = small_net(), []
    output = {}

    def watch(module, args, result):
        output[module] = result.requires_grad
        ran.append(module)

    handles = [module.register_forward_hook(watch) for module in model]
    gradient_norms(model, images(), layers="6.*")
    for handle in handles:
        handle.remove()
    assert [output[module] for module in model] == [False] * 6 + [True]


def test_several_objectives_to_one_forward():
    model, names = small_net(), ("0.weight", "6.weight")
    recording = record(model, images(), selected(model, names))
    for temperature in (1.0, 3.0):
        cotangent = Objective(temperature=temperature).logit_gradient(recording.logits)
        norms = recording.norms(cotangent, (1.0, 2.0, math.inf))
        for p, got in zip((1.0, 2.0, math.inf), norms, strict=True):
            objective = Objective(p, temperature)
            expected = one_backward_a_sample(model, images(), objective, layers=names)
            torch.testing.assert_close(got, expected.norms)


def test_groups_are_norms_of_norms():
    got = gradient_norms(small_net(), images(), p=2.0)
    both = combine_norms([got.norms[:, 0], got.norms[:, 1]], 2.0)
    torch.testing.assert_close(got.group("0.*"), both)
    torch.testing.assert_close(got.group("last"), got.norms[:, got.parameters.index("6.weight")])
    assert (got.norms >= 0).all()


def test_groups_are_pickled_without_the_model():
    got = gradient_norms(small_net(), images())
    again = pickle.loads(pickle.dumps(got))
    assert type(again.groups) is dict
    assert again.groups["last"] == ("6.weight",)
    torch.testing.assert_close(again.group("last"), got.group("last"))


def test_groups_of_a_model_that_was_changed_since_are_refused():
    model = small_net()
    got = gradient_norms(model, images())
    model[6] = nn.Linear(16, 2).double()
    with pytest.raises(ModelError, match="got one with parts replaced; ask for the norms again"):
        got.group("last")
    assert gradient_norms(model, images()).group("last").shape == (3,)


def test_autocast_is_served():
    model = small_net().float()
    exact = gradient_norms(model, images().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = gradient_norms(model, images().float())
    assert got.norms.dtype == torch.float32
    torch.testing.assert_close(got.group("all"), exact.group("all"), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm2d(2), "batch norm with fixed statistics, got layer '0'"),
        (nn.Dropout(0.1), "without active dropout, got layer '0' \\(Dropout\\) in train mode"),
    ],
)
def test_train_mode_is_refused_by_the_name_of_the_layer(layer, message):
    with pytest.raises(ModelError, match=message):
        gradient_norms(nn.Sequential(layer, small_net()).train(), images().float())


def test_a_batch_norm_without_statistics_is_refused():
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), *small_net()).double()
    with pytest.raises(ModelError, match="'0' which takes them from the batch; build it with"):
        gradient_norms(model.eval(), images())


def test_functional_dropout_is_refused():
    class Dropping(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5)

    with pytest.raises(ModelError, match=r"a call of dropout with p = 0\.5"):
        gradient_norms(nn.Sequential(Dropping(), small_net()), images())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"p": 0}, "p > 0, got p = 0"),
        ({"temperature": -1}, "temperature > 0, got -1"),
        ({"target": "two-hot"}, "got 'two-hot'"),
        ({"layers": "no.such"}, "got 'no.such'"),
    ],
)
def test_bad_settings_are_named(how, message):
    with pytest.raises(InvalidArgument, match=message):
        gradient_norms(small_net(), images(), **how)


def test_wrong_shapes_are_shown():
    model = small_net()
    recording = record(model, images(), selected(model, ["6.weight"]))
    with pytest.raises(InvalidArgument, match=r"cotangent \[3, 3\] as the logits, got \[3, 2\]"):
        recording.norms(torch.zeros(3, 2), (1.0,))
    with pytest.raises(ModelError, match=r"logits \[3, classes\] for .* tensor \[3, 2, 6, 6"):
        gradient_norms(nn.Conv2d(2, 2, 1).double(), images())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("temperature", "target"), [(1e4, "uniform"), (0.05, "one-hot")])
def test_half_precision_does_not_round_small_gradients_to_zero(dtype, temperature, target):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    images = torch.randn(4, 3, 2, 2)
    half = gradient_norms(
        model.to(dtype), images.to(dtype), temperature=temperature, target=target
    )
    logits = model(images.to(dtype)).float()
    cotangent = Objective(1.0, temperature, target).logit_gradient(logits)
    model = model.float()
    exact = record(model, images.to(dtype).float(), selected(model, half.parameters))
    expected = exact.norms(cotangent, (1.0,))[0]
    torch.testing.assert_close(half.norms, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("p", [0.5, 1.0, 1.5, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("margin", [40.0, 75.0, 95.0])
def test_confident_samples_keep_their_digits(margin, p):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4)).eval()
    with torch.no_grad():
        model[3].bias[2] += margin
    x, how = torch.randn(3, 3, 2, 2), {"p": p, "target": "one-hot"}
    double = copy.deepcopy(model).double()
    exact = one_backward_a_sample(double, x.double(), Objective(**how))
    got = gradient_norms(model, x, **how)
    torch.testing.assert_close(got.norms, exact.norms.float(), rtol=1e-3, atol=1e-43)
    for layers, names in (("all", "*"), ("last", "3.weight"), ("1.*", "1.*")):
        score = -GradNorm(model, layers=layers, **how)(x)
        expected = exact.group(names).float()
        torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-43)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_statistics_of_batch_norm_are_not_rounded(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()
    model[0].running_mean.fill_(1001.0)
    model[0].running_var.fill_(1e5)  # out of the range of float16
    x = (1001 + 300 * torch.randn(4, 2, 2, 2)).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        got = gradient_norms(model, x, layers="0.*")
    exact = gradient_norms(model, x.float(), layers="0.*")
    torch.testing.assert_close(got.norms, exact.norms, rtol=0.05, atol=0)


def test_a_lone_sample_may_lose_its_batch_axis():
    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.norm(x.squeeze(0))).view(-1, 3)

    torch.manual_seed(0)
    model, x = Squeezed().double().eval(), torch.randn(1, 6, dtype=torch.float64)
    nn.init.normal_(model.norm.weight)
    got = gradient_norms(model, x)
    torch.testing.assert_close(got.norms, one_backward_a_sample(model, x).norms)


@pytest.mark.parametrize("inside", [False, True])
def test_wrapped_models_are_refused(inside):
    model = nn.DataParallel(nn.Linear(4, 3))
    with pytest.raises(ModelError, match=r"wrapped in DataParallel; pass its \.module"):
        gradient_norms(nn.Sequential(model).eval() if inside else model.eval(), torch.randn(2, 4))


def test_lazy_layers_are_refused_until_they_have_their_shapes():
    model = nn.Sequential(nn.LazyLinear(3)).eval()
    with pytest.raises(ModelError, match="lazy layer '0'; run the model once first"):
        gradient_norms(model, torch.randn(2, 4))
    model(torch.randn(2, 4))
    assert gradient_norms(model, torch.randn(2, 4)).norms.shape == (2, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused_by_the_image(value):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x) + torch.where(x[:, :1] > 2, value, 0.0)

    images = torch.zeros(5, 4)
    images[3] = 3
    with pytest.raises(InvalidArgument, match="NaN or infinity for image 3; look at"):
        gradient_norms(Failing().eval(), images)
