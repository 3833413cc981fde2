"""Models and images of every kind: right from each entry, or refused in one clear line."""

import pytest
import torch
from torch import nn

import gradscore as gs
from gradscore.engine import gradient_norms
from gradscore.errors import GradScoreError
from gradscore.models.preprocessing import Preprocessing
from gradscore.recorded import extract
from gradscore.reference import one_backward_a_sample
from gradscore.run import RunStore


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10)
    return nn.Sequential(*layers).eval()


class Wrapped(nn.Module):
    """A network, and a way to run it."""

    def __init__(self, run):
        super().__init__()
        self.body, self.run = net(), run

    def forward(self, x):
        return self.run(self.body, x)


def within_autocast(body, x):
    with torch.autocast("cpu", torch.bfloat16):
        return body(x)


def without_gradient(body, x):
    with torch.no_grad():
        return body(x)


def partly_without_gradient(body, x):
    with torch.no_grad():
        x = body[:3](x)
    return body[3](x)


class Routed(nn.Module):
    """A network with an expert to which no image is sent."""

    def __init__(self, expert):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.expert, self.head = nn.Linear(6, 6), expert, nn.Linear(6, 10)

    def forward(self, x):
        h = self.first(x.flatten(1)[:, :6])
        sent = (h[:, 0] > 1e9).nonzero().flatten()
        inputs = (h[sent],) * (2 if isinstance(self.expert, nn.Bilinear) else 1)
        return self.head(h.index_add(0, sent, self.expert(*inputs)).tanh())


def compiled(part):
    model = net()
    if part == "method":
        model.compile()
        return model
    return torch.compile(model) if part == "whole" else nn.Sequential(torch.compile(model)).eval()


def exported():
    size = ({0: torch.export.Dim("batch")},)
    return torch.export.export(net(), (X,), dynamic_shapes=size).module()


X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
SERVED = {
    "autocast": lambda: Wrapped(within_autocast),
    "autocast, float": lambda: Wrapped(lambda body, x: within_autocast(body, x).float()),
    "partly without gradient": lambda: Wrapped(partly_without_gradient),
    "detached": lambda: Wrapped(lambda body, x: body[3](body[:3](x).detach())),
    "empty batch norm": lambda: Routed(nn.BatchNorm1d(6)),
    "empty prelu": lambda: Routed(nn.PReLU(6)),
    "empty bilinear": lambda: Routed(nn.Bilinear(6, 6, 6)),
    "empty layer norm": lambda: Routed(nn.LayerNorm(6)),
    "compiled": lambda: compiled("whole"),
    "compiled method": lambda: compiled("method"),
    "compiled part": lambda: compiled("part"),
    "exported": exported,
}
COARSE = {"autocast": 0.05, "autocast, float": 0.05}


@pytest.mark.filterwarnings("ignore:That no image:gradscore.errors.GradScoreWarning")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", SERVED)
def test_served(name, batch):
    model, x, rtol = SERVED[name](), X[:batch], COARSE.get(name, 1e-4)
    model.train(False) if name != "exported" else None
    expected = one_backward_a_sample(model, x)
    got = gradient_norms(model, x)
    torch.testing.assert_close(got.norms, expected.norms, rtol=rtol, atol=1e-5)
    weight = next(n for n in reversed(expected.parameters) if n.endswith("weight"))
    of_head = expected.norms[:, expected.parameters.index(weight)]
    torch.testing.assert_close(gs.GradNorm(model)(x), of_head, rtol=rtol, atol=1e-5)
    score = gs.GradNorm(model, layers="all")(x)
    torch.testing.assert_close(score, expected.norms.sum(1), rtol=rtol, atol=1e-5)
    assert gs.verify(model, x).max_relative_error < 1e-6


@pytest.mark.parametrize("name", ["autocast", "empty prelu", "compiled"])
def test_served_from_sets(name, tmp_path):
    model = SERVED[name]().eval()
    model.preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="L")
    model.spec = "odd"
    extract(model, {"digits": ("id", "digits:test")}, tmp_path / "run", limit=3, batch_size=2)
    (block,) = RunStore(tmp_path / "run").blocks("digits", fields=("logits",))
    assert block["logits"].shape[0] == 3


def entries(model, x):
    """Yield every way to ask for a number."""
    yield lambda: gradient_norms(model, x)
    yield lambda: gs.GradNorm(model)(x)
    yield lambda: gs.GradNorm(model, layers="all")(x)
    yield lambda: gs.verify(model, x)


REFUSED = {
    "no gradient": (lambda: Wrapped(without_gradient).eval(), X, "carry a gradient"),
    "frozen": (lambda: torch.jit.freeze(torch.jit.script(net())), X, "before torch.jit.freeze"),
    "program": (lambda: torch.export.export(net(), (X,)), X, r"pass its \.module\(\)"),
    "function": (lambda: lambda x: net()(x), X, "got function; wrap it in a module"),
    "bound method": (lambda: net().forward, X, "got method; wrap it in a module"),
    "class": (lambda: nn.Linear, X, "torch.nn.Module, got type"),
    "no parameters": (nn.Flatten, X, "with parameters, got one without"),
    "no batch axis": (net, X[0], r"images\[None\]"),
    "array": (net, X.numpy(), "got ndarray; convert it"),
    "nested list": (net, X.tolist(), "got list; convert it"),
    "list of tensors": (net, list(X), "got list; convert it"),
    "nothing": (net, None, "got NoneType; convert it"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line_that_says_what_to_do(name):
    make, x, message = REFUSED[name]
    model = make()
    for ask in entries(model, x):
        with pytest.raises(GradScoreError, match=message) as caught:
            ask()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_another_type_than_the_weights_are_refused(dtype):
    for ask in list(entries(net().to(dtype), X))[:3]:
        with pytest.raises(GradScoreError, match=f"Its parameters are {dtype}: convert one"):
            ask()


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_callers_default_device_is_no_matter(device, tmp_path):
    model = net()
    expected = gradient_norms(model, X).norms, gs.GradNorm(model)(X)
    model, store = net(), tmp_path / "run"
    model.preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="L")
    model.spec = "plain"
    with torch.device(device):
        got = gradient_norms(model, X).norms, gs.GradNorm(model)(X)
        assert gs.verify(model, X).max_relative_error < 1e-6
        sets = {"digits": ("id", "digits:test")}
        extract(model, sets, store, limit=3, batch_size=2)
    torch.testing.assert_close(got, expected)
