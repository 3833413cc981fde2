"""The references agree with each other and with the plain definition."""

import threading
from types import SimpleNamespace

import pytest
import torch
from helpers.by_vmap import per_sample_vmap
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradscore.errors import InvalidArgument, ModelError
from gradscore.objective import Objective
from gradscore.reference import backward_norms, loss_function, one_backward_a_sample


def model_and_images(batch=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    return model.double().eval(), torch.randn(batch, 1, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("target", ["uniform", "one-hot"])
def test_both_equal_the_definition(p, target):
    model, images = model_and_images()
    one = one_backward_a_sample(model, images, Objective(p, 2.0, target))
    vmapped = per_sample_vmap(model, images, Objective(p, 2.0, target))
    for sample, image in enumerate(images):
        log_q = F.log_softmax(model(image[None]) / 2.0, dim=1)[0]
        loss = -log_q.mean() if target == "uniform" else -log_q.max()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        expected = torch.stack([g.abs().pow(p).sum().pow(1 / p) for g in gradients])
        torch.testing.assert_close(one.norms[sample], expected)
        torch.testing.assert_close(vmapped.norms[sample], expected)
    assert one.parameters == vmapped.parameters == ("0.weight", "0.bias", "3.weight", "3.bias")
    assert set(one.rules.values()) == {"reference"}
    assert set(vmapped.rules.values()) == {"vmap"}


@pytest.mark.parametrize("method", [one_backward_a_sample, per_sample_vmap])
def test_frozen_models_empty_batches_and_inference_mode(method):
    model, images = model_and_images()
    expected = method(model, images, layers="3.*")
    with torch.inference_mode():
        got = method(model.requires_grad_(False), images, layers="3.*")
    torch.testing.assert_close(got.norms, expected.norms)
    assert not any(p.requires_grad for p in model.parameters())
    assert method(model, images[:0], layers="3.*").norms.shape == (0, 2)


def test_the_one_place_where_the_reference_differs_from_autograd():
    """Of a lone image's batch axis the stride is arbitrary, and torch's batch norm trusts it."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).double().eval()
    spread = torch.arange(16.0).view(16, 1)

    class Tokens(nn.Module):
        def __init__(self, normalise):
            super().__init__()
            self.norm, self.normalise = norm, normalise

        def forward(self, x):
            tokens = self.normalise(x).flatten(2).transpose(1, 2).contiguous()
            return (tokens * spread).tanh().sum(dim=1)

    def by_hand(x):
        return x / (1 + norm.eps) ** 0.5 * norm.weight[:, None, None] + norm.bias[:, None, None]

    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = one_backward_a_sample(Tokens(by_hand), images).norms
    torch.testing.assert_close(one_backward_a_sample(Tokens(norm), images).norms, expected)
    torch.testing.assert_close(per_sample_vmap(Tokens(norm), images).norms, expected)
    log_q = F.log_softmax(Tokens(norm)(images[:1]), dim=1)
    autograd = torch.autograd.grad(-log_q.mean(), list(norm.parameters()))
    assert not torch.allclose(torch.stack([g.abs().sum() for g in autograd]), expected[0])


def test_what_cannot_be_vmapped_is_named():
    class Counting(nn.Module):
        def forward(self, x):
            return x * int(x.sum().item() > 0)

    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), Counting()).double()
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"torch\.func\.vmap can run"):
        per_sample_vmap(model, images)
    assert one_backward_a_sample(model, images).norms.shape == (2, 2)


def test_layers_that_mean_nothing_are_refused():
    model, images = model_and_images()
    with pytest.raises(InvalidArgument, match="got 'block9'"):
        one_backward_a_sample(model, images, layers="block9")


class Net(nn.Module):
    """A model from a function of its weights ``w`` and ``u``."""

    def __init__(self, forward):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.w, self.u = (
            nn.Parameter(torch.randn(*shape, generator=rng, dtype=torch.float64))
            for shape in ((5, 5), (4, 5))
        )
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def hidden(m, x):
    return F.linear(x, m.w).tanh()


def plain(m, x):
    return F.linear(hidden(m, x), m.u)


def through_a_closure():
    model = Net(None)
    model.run = lambda _, x: plain(model, x)
    return model


def uncopyable(forward=plain):
    model = Net(forward)
    model.lock = threading.Lock()
    return model


def with_a_kept_graph():
    model = Net(lambda m, x: F.linear(F.linear(x, m.kept).tanh(), m.u))
    model.kept = model.w.exp()
    return model


def tied():
    model = Net(lambda m, x: F.linear(F.linear(hidden(m, x), m.again).tanh(), m.u))
    model.again = model.w
    return model


def checkpointed(reentrant):
    return lambda m, x: F.linear(checkpoint(hidden, m, x, use_reentrant=reentrant), m.u)


def indices(x):
    return (x.abs() * 3).long() % 5


def routed(m, x):
    return plain(m, x) if x[0, 0] > 0 else x[:, :4] * m.u[:, 0]


ODD = {  # an odd model, and what it amounts to
    "plain": (Net(plain), plain),
    "tied": (tied(), lambda m, x: F.linear(F.linear(hidden(m, x), m.w).tanh(), m.u)),
    "closure": (through_a_closure(), plain),
    "uncopyable": (uncopyable(), plain),
    "kept graph": (
        with_a_kept_graph(),
        lambda m, x: F.linear(F.linear(x, m.w.exp()).tanh(), m.u),
    ),
    "sparse": (
        Net(lambda m, x: F.linear(F.embedding(indices(x), m.w, sparse=True).mean(1), m.u)),
        lambda m, x: F.linear(m.w[indices(x)].mean(1), m.u),
    ),
    "overwritten": (Net(lambda m, x: plain(m, x.mul_(0.5))), lambda m, x: plain(m, x * 0.5)),
    "by NumPy": (Net(lambda m, x: plain(m, x * float(x.numpy().max()))), None),
    "routed": (Net(routed), routed),
    "constant": (Net(lambda m, x: torch.arange(4.0)[None].double()), None),
    "of one size": (
        Net(lambda m, x: F.linear(hidden(m, x).view(3, 5), m.u)),
        plain,
    ),
    "reentrant": (Net(checkpointed(True)), plain),
    "non-reentrant": (Net(checkpointed(False)), plain),
    "object": (Net(lambda m, x: SimpleNamespace(logits=plain(m, x))), plain),
    "mapping": (Net(lambda m, x: {"logits": plain(m, x)}), plain),
}


def state(model):
    """Return what may not change: weights, flags, gradients, attributes."""
    return [
        *((id(p), p.tolist(), p.requires_grad, id(p.grad)) for p in model.parameters()),
        *sorted((name, id(value)) for name, value in vars(model).items()),
    ]


def expected_norms(model, forward, x, names):
    """Return what autograd says of the sum of a loss, sample by sample."""
    rows = []
    for image in x.split(1):
        log_q = F.log_softmax(forward(model, image), dim=1)
        if not log_q.requires_grad:
            rows.append(torch.zeros(len(names), dtype=x.dtype))
            continue
        values = [getattr(model, name) for name in names]
        gradients = torch.autograd.grad(-log_q.mean(), values, materialize_grads=True)
        rows.append(torch.stack([gradient.abs().sum() for gradient in gradients]))
    return torch.stack(rows)


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layers", ["all", "w", "u"])
@pytest.mark.parametrize("name", ODD)
def test_odd_models_are_what_they_amount_to(name, layers, frozen):
    model, amounts_to = ODD[name]
    model.requires_grad_(not frozen or name == "kept graph")
    images, before = drawn(3, 5), state(model)
    with torch.inference_mode(frozen):
        got = one_backward_a_sample(model, images + 0, layers=layers)
    assert torch.equal(images, drawn(3, 5))
    assert state(model) == before
    model.requires_grad_()
    expected = expected_norms(model, amounts_to or model.run, drawn(3, 5), got.parameters)
    torch.testing.assert_close(got.norms, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [Net, uncopyable], ids=["copied", "uncopyable"])
def test_each_sample_finds_the_model_as_it_was(make):
    def counting(m, x):
        m.calls, m.seen[0], m.sum = m.calls + 1, x, m.sum + x[0]
        m.total.add_(1)
        m.u.data.mul_(2)
        m.u.grad = m.u.detach()
        return plain(m, x) * m.calls + m.sum[:4] + m.total

    model = make(counting)
    model.calls, model.seen = 0, [None]
    for name in ("sum", "total"):
        model.register_buffer(name, torch.zeros(5 if name == "sum" else 1).double())
    model.w.grad = torch.ones(5, 5, dtype=torch.float64)
    before = state(model)
    got = one_backward_a_sample(model, drawn(3, 5)).norms
    assert state(model) == before
    assert (model.calls, model.seen, float(model.sum.sum()), float(model.total)) == (
        0,
        [None],
        0,
        0,
    )
    again = one_backward_a_sample(model, drawn(3, 5).flip(0)).norms.flip(0)
    assert torch.equal(again, got)


@pytest.mark.parametrize("make", [Net, uncopyable], ids=["copied", "uncopyable"])
def test_hooks_on_parameters_count(make):
    model = make(plain)
    expected = one_backward_a_sample(model, drawn(2, 5)).norms
    model.w.register_hook(lambda gradient: 3 * gradient)
    got = one_backward_a_sample(model, drawn(2, 5)).norms
    torch.testing.assert_close(got, expected * torch.tensor([3.0, 1.0]).double())


def test_complex_and_unused_parameters():
    model = Net(lambda m, x: F.linear(x.to(torch.complex128), m.c).abs())
    model.c = nn.Parameter(torch.randn(4, 5, dtype=torch.complex128))
    got = one_backward_a_sample(model, drawn(2, 5))
    expected = expected_norms(model, model.run, drawn(2, 5), got.parameters)
    torch.testing.assert_close(got.norms, expected)
    assert (got.norms[:, 2] > 0).all()


@pytest.mark.parametrize("temperature", [1.0, 1e3, 1e9])
@pytest.mark.parametrize("target", ["uniform", "one-hot"])
def test_digits_stay_where_the_softmax_is_nearly_uniform_or_one_hot(temperature, target):
    model = Net(plain)
    with torch.no_grad():
        model.u.mul_(1e-3 if target == "uniform" else 80 * temperature)
    objective = Objective(1.0, temperature, target)
    got = one_backward_a_sample(model, drawn(3, 5), objective, layers="u").norms[:, 0]
    with torch.no_grad():
        features, logits = hidden(model, drawn(3, 5)), model(drawn(3, 5))
    expected = objective.logit_gradient(logits).abs().sum(1) * features.abs().sum(1)
    assert (got > 0).all()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


def test_what_cannot_require_a_gradient_is_refused():
    model = uncopyable()
    with torch.inference_mode():
        model.w = nn.Parameter(torch.ones(5, 5, dtype=torch.float64))
    with pytest.raises(ModelError, match="parameters that can require a gradient"):
        one_backward_a_sample(model, drawn(2, 5))


@pytest.mark.parametrize("make", [Net, uncopyable], ids=["copied", "uncopyable"])
@pytest.mark.parametrize("layers", ["all", "w"])
def test_a_forward_without_a_graph_is_refused(make, layers):
    model = make(torch.no_grad()(plain))
    before = state(model)
    with pytest.raises(ModelError, match=r"got a forward that runs without one; take torch\.no_"):
        one_backward_a_sample(model, drawn(2, 5), layers=layers)
    assert state(model) == before


def test_only_the_samples_asked_for_are_run():
    model, seen = Net(plain), []
    model.register_forward_hook(lambda module, args, output: seen.append(args[0].tolist()))
    selected, losses = dict(model.named_parameters()), [loss_function(Objective())] * 2
    got = backward_norms(model, drawn(4, 5), selected, losses, (1.0, 2.0), samples=[2, 0])
    assert seen == [drawn(4, 5)[2:3].tolist(), drawn(4, 5)[:1].tolist()]
    for order, p in enumerate((1.0, 2.0)):
        expected = one_backward_a_sample(model, drawn(4, 5), Objective(p)).norms[[2, 0]]
        torch.testing.assert_close(got[order], expected, rtol=0, atol=0)


def test_a_copy_that_unties_parameters_counts_all_of_them():
    class Untying(Net):
        def __deepcopy__(self, memo):
            copy = Net(self.run)
            copy.again = nn.Parameter(copy.w.detach().clone())
            return copy

    model, run = Untying(ODD["tied"][0].run), ODD["tied"][1]
    model.again = model.w
    got = one_backward_a_sample(model, drawn(2, 5))
    assert got.parameters == ("w", "u")
    expected = expected_norms(model, run, drawn(2, 5), got.parameters)
    torch.testing.assert_close(got.norms, expected, rtol=1e-12, atol=0)


class Tabled(nn.Module):
    """Scale by what a table was once filled with from a parameter, and by a constant in another.

    Args:
        given: A third table; what it holds stands for the scale.
    """

    def __init__(self, given):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0]).double())
        self.head = nn.Linear(2, 3).double()
        self.constant, self.derived, self.given = {"half": torch.tensor(0.5)}, {}, given

    def forward(self, x):
        if not self.derived:
            self.derived["scale"] = self.scale * self.constant["half"]
        return self.head(x * self.given.get("scale", self.derived["scale"]))


@pytest.mark.parametrize("given", [False, True])
def test_of_the_tables_only_those_that_the_forward_fills_are_made_anew(given):
    torch.manual_seed(0)
    model = Tabled({"scale": torch.tensor([1.0, 1.5]).double()} if given else {}).eval()
    x = torch.randn(3, 2, dtype=torch.float64)
    with torch.no_grad():
        model(x)
    norms = one_backward_a_sample(model, x).norms
    model.derived.clear()
    expected = one_backward_a_sample(model, x).norms
    assert (expected[:, 0] == 0).all() == given
    torch.testing.assert_close(norms, expected)
