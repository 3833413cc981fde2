"""Whatever follows the last layer, its score is that of autograd, or it is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import gradscore as gs
from gradscore.errors import ModelError
from gradscore.layers.features import observe_features
from gradscore.layers.head import Head, find_head

DRAWN = torch.Generator().manual_seed(0)
IMAGES = torch.randn(5, 6, dtype=torch.float64, generator=DRAWN)


class Net(nn.Module):
    """A small body, a Linear of five classes, and the case."""

    def __init__(self, head, **modules):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc, self.other = nn.Linear(6, 4), nn.Linear(4, 5), nn.Linear(4, 5)
        for name, module in modules.items():
            setattr(self, name, module)
        self.head = head

    def forward(self, x):
        return self.head(self, self.body(x).tanh())


def net(head, **modules):
    return Net(head, **modules).double().eval()


def autograd_norms(model, images, names):
    """Norm of the gradient of KL(u || softmax(f)) over some parameters, one backward a sample."""
    norms = []
    for image in images:
        model.zero_grad()
        torch.log_softmax(model(image[None]), dim=1).mean().neg().backward()
        gradients = [p.grad for name, p in model.named_parameters() if name in names]
        norms.append(sum(g.abs().sum() for g in gradients if g is not None))
    model.zero_grad()
    return torch.stack(norms)


class Twice(torch.autograd.Function):
    """The identity, whose gradient is twice what it should be."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Sharpened(nn.Linear):
    """A Linear by class whose weight has another gradient than its values tell."""

    def forward(self, x):
        return F.linear(x, Twice.apply(self.weight), self.bias)


class BoundedLinear(nn.Linear):
    """A Linear by class that bounds its outputs, in batches in which one exceeds the bound."""

    def forward(self, x):
        return bounded(super().forward(x))


def bounded(y):
    return y if y.detach().max() < 5 else y.clamp(max=5)


def hooked(y, hook):
    if y.requires_grad:
        y.register_hook(hook)
    return y


def scaled_by_full_hook():
    layer = nn.Linear(4, 5)
    layer.register_full_backward_pre_hook(lambda module, grads: (grads[0] * 3,))
    return layer


def in_place(model, h):
    y = model.fc(h)
    h.zero_()
    return y


def halves(model, h):
    return torch.cat([y.detach() if k else y for k, y in enumerate(model.fc(h).split(3, 1))], 1)


def straight_through(y):
    return y + (y - y.detach())


CLOSED = {
    "plain": lambda m, h: m.fc(h),
    "contiguous-copy": lambda m, h: m.fc(h).contiguous().clone(),
    "one-position": lambda m, h: m.fc(h[:, None, :])[:, 0],
    "half-then-float": lambda m, h: m.fc(h).float(),
    "no-gradient-of-features": lambda m, h: m.fc(h.detach()),
}
BY_RULES = {
    "clamped": lambda m, h: m.fc(h).clamp(max=0.4),
    "clamped-on-both-sides": lambda m, h: m.fc(h).clamp(-0.3, 0.3),
    "clamped-far-out": lambda m, h: m.fc(h).clamp(max=10),
    "twice-behind-an-identity": lambda m, h: Twice.apply(m.fc(h)),
    "straight-through": lambda m, h: straight_through(m.fc(h)),
    "straight-through-for-some": lambda m, h: (
        m.fc(h) + (m.fc(h) - m.fc(h).detach()) * (h[:, :1] > 0)
    ),
    "detached-where-small": lambda m, h: (lambda y: torch.where(y > -9, y, y.detach()))(m.fc(h)),
    "detached-classes": halves,
    "hook-on-output": lambda m, h: hooked(m.fc(h), lambda g: g * 3),
    "hook-that-clips": lambda m, h: hooked(m.fc(h), lambda g: g.clamp(-0.1, 0.1)),
    "hook-that-rounds": lambda m, h: hooked(m.fc(h), lambda g: g * (g.abs() > 0.05)),
    "temperature": lambda m, h: m.fc(h) / 4,
    "minus-largest": lambda m, h: (lambda y: y - y.max(1, keepdim=True).values)(m.fc(h)),
    "minus-mean": lambda m, h: (lambda y: y - y.mean(1, keepdim=True))(m.fc(h)),
    "log-softmax": lambda m, h: m.fc(h).log_softmax(1),
    "bias-outside": lambda m, h: F.linear(h, m.fc.weight) + m.other.bias,
    "permuted": lambda m, h: m.fc(h)[:, [4, 0, 3, 1, 2]],
    "sliced": lambda m, h: m.fc(h)[:, :3],
    "averaged": lambda m, h: (m.fc(h) + m.other(h**2)) / 2,
    "added": lambda m, h: m.fc(h) + m.other(h**2),
    "used-twice": lambda m, h: m.fc(h) + m.fc(h**2),
    "cosine": lambda m, h: 8 * F.linear(F.normalize(h), F.normalize(m.fc.weight)),
    "margin": lambda m, h: 8 * F.linear(F.normalize(h), F.normalize(m.fc.weight)).clamp(-1, 1),
    "tied": lambda m, h: F.linear(h, m.other.weight) + m.fc(h + m.other.weight.mean(0)) * 0,
    "masked-classes": lambda m, h: m.fc(h).masked_fill(torch.arange(5) == 2, -1e4),
    "softcap": lambda m, h: 3 * torch.tanh(m.fc(h) / 3),
    "no-fc-module": lambda m, h: h @ m.fc.weight.T + m.fc.bias,
    "full-backward-hook": (lambda m, h: m.fc(h), scaled_by_full_hook),
    "weight-behind-an-identity": (lambda m, h: m.fc(h), lambda: Sharpened(4, 5)),
    "weight-norm": (
        lambda m, h: m.fc(h),
        lambda: parametrizations.weight_norm(nn.Linear(4, 5)),
    ),
    "spectral-norm": (
        lambda m, h: m.fc(h),
        lambda: parametrizations.spectral_norm(nn.Linear(4, 5)).eval(),
    ),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("case", [*CLOSED, *BY_RULES])
def test_the_score_is_that_of_autograd(case):
    head = (CLOSED | BY_RULES)[case]
    head, make = head if isinstance(head, tuple) else (head, lambda: nn.Linear(4, 5))
    model = net(head, fc=make())
    names = find_head(model, IMAGES).weights
    assert find_head(model, IMAGES).closed_form == (case in CLOSED)
    expected = autograd_norms(copy.deepcopy(model), IMAGES, names)
    assert (expected > 0).sum() > 3
    tolerance = {"rtol": 1e-5, "atol": 0} if "float" in case else {"rtol": 1e-9, "atol": 1e-12}
    found = gs.gradient_norms(model, IMAGES, layers="last")
    assert found.parameters == names
    torch.testing.assert_close(found.group("last").double(), expected, **tolerance)
    for batch in (IMAGES, IMAGES * 4):
        expected = autograd_norms(copy.deepcopy(model), batch, names)
        got = gs.GradNorm(model)(batch).double()
        torch.testing.assert_close(got, expected, **tolerance)


@pytest.mark.parametrize("inside", [False, True], ids=["behind-the-layer", "in-the-layer"])
def test_a_bound_that_one_logit_exceeds_by_a_little_is_seen(inside):
    """No image of the proof reaches it, nor is it in their graph."""
    torch.manual_seed(0)
    layer = (BoundedLinear if inside else nn.Linear)(6, 5, bias=False)
    model = nn.Sequential(layer, nn.Identity() if inside else Lambda(bounded)).eval()
    images = IMAGES.float()
    images /= (images @ layer.weight.detach().T).max(1, keepdim=True).values
    scorer = gs.GradNorm(model)
    scorer(images)
    assert scorer._head(images[:2]).closed_form
    images[4] *= 5.001
    expected = autograd_norms(copy.deepcopy(model), images, ("0.weight",))
    torch.testing.assert_close(scorer(images), expected, rtol=1e-5, atol=0)
    with torch.no_grad(), observe_features(model, scorer._head(images[:2])) as observed:
        logits = model(images)
    with pytest.raises(ModelError, match="output of layer '0' for every image"):
        observed.check(logits)


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
@pytest.mark.parametrize("layers", ["last", "all"])
def test_a_hook_on_a_parameter_is_refused_by_name(register, layers):
    model = net(CLOSED["plain"])
    handle = getattr(model.fc.weight, register)(lambda x: None)
    for call in (gs.GradNorm(model, layers=layers), lambda x: gs.gradient_norms(model, x)):
        with pytest.raises(ModelError, match=r"'fc\.weight' with a hook on its gradient; remove"):
            call(IMAGES)
    handle.remove()
    scorer = gs.GradNorm(model, layers=layers)
    scorer(IMAGES)
    getattr(model.fc.weight, register)(lambda x: None)
    with pytest.raises(ModelError, match="hook on its gradient"):
        scorer(IMAGES)


def without_graph(decorate):
    class Forward(Net):
        @decorate
        def forward(self, x):
            return super().forward(x)

    return Forward


@pytest.mark.parametrize(
    "decorate",
    [
        torch.no_grad(),
        torch.inference_mode(),
        lambda forward: lambda *args: forward(*args).detach(),
        lambda forward: lambda *args: forward(*args).data,
    ],
    ids=["no-grad", "inference-mode", "detach", "data"],
)
def test_logits_without_a_gradient_are_refused(decorate):
    model = without_graph(decorate)(CLOSED["plain"]).double().eval()
    for call in (
        gs.GradNorm(model),
        gs.GradNorm(model, layers="all"),
        lambda x: gs.gradient_norms(model, x),
        lambda x: gs.gradient_norms(model, x, layers="last"),
    ):
        with pytest.raises(ModelError, match="Expected logits that carry a gradient"):
            call(IMAGES)


def test_a_head_under_an_autocast_of_the_forward_is_proved():
    def head(m, h):
        with torch.autocast("cpu", torch.bfloat16):
            return m.fc(h.float())

    model = net(head).float()
    scores = gs.GradNorm(model)(IMAGES.float())
    assert find_head(model, IMAGES.float()).closed_form
    expected = autograd_norms(copy.deepcopy(model), IMAGES.float(), ("fc.weight",))
    torch.testing.assert_close(scores, expected.float(), rtol=1e-2, atol=0)


def test_images_that_have_a_graph_of_their_own_do_not_hide_the_last_layer():
    images = (IMAGES / IMAGES.clone().requires_grad_()).detach_().requires_grad_() * 2
    assert gs.GradNorm(net(CLOSED["plain"]))._head(images).closed_form


def test_features_are_those_that_entered_the_layer_whatever_is_written_later():
    model = net(in_place)
    with (
        torch.no_grad(),
        observe_features(model, Head("fc", ("fc.weight",), "fc.bias", True)) as o,
    ):
        logits = model(IMAGES)
    torch.testing.assert_close(o.features, model.body(IMAGES).tanh().detach())
    assert o.explains(logits)
