"""Nothing of our forwards remains in a model, and nothing that it keeps hides a parameter."""

import copy
import random
import threading
import types
from contextvars import ContextVar

import numpy as np
import pytest
import torch
from helpers.small_models import Model, hold_to_reference, images
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from gradscore import GradNorm, verify
from gradscore.engine import gradient_norms
from gradscore.errors import ModelError
from gradscore.layers.head import find_head
from gradscore.network import preserve_state
from gradscore.reference import one_backward_a_sample


class Keeping(nn.Module):
    """A network that keeps a derived table, its features and counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(3, 5))
        self.head = nn.Linear(5, 4)
        self.register_buffer("forwards", torch.zeros(()))
        self.register_buffer("latest", torch.zeros(5))
        self.derived, self.features, self.calls = {}, None, [0]

    def forward(self, x):
        self.forwards += 1
        self.latest = x[0].detach()
        self.calls[0] += 1
        if "table" not in self.derived:
            self.derived["table"] = self.table.exp().sum(dim=0)
        self.features = (x * self.derived["table"]).tanh()
        return self.head(self.features)


def keeping():
    return Keeping().double().eval()


WAYS = {
    "norms": lambda model, x: gradient_norms(model, x).norms,
    "groups": lambda model, x: gradient_norms(model, x, layers="last").norms,
    "one backward": lambda model, x: one_backward_a_sample(model, x).norms,
    "score": lambda model, x: GradNorm(model, layers="table")(x),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_model_keeps_is_as_before(way):
    model = keeping()
    before = copy.deepcopy(model)
    WAYS[way](model, images(3, 5))
    assert (model.derived, model.features, model.calls) == ({}, None, [0])
    assert model.forwards == 0
    assert torch.equal(model.latest, before.latest)
    copy.deepcopy(model)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_table_made_once_hides_no_parameter(batch):
    model = keeping()
    expected = one_backward_a_sample(model, images(batch, 5))
    assert expected.norms[:, 0].min() > 0
    for _ in range(3):
        got = gradient_norms(model, images(batch, 5))
        torch.testing.assert_close(got.norms, expected.norms, rtol=1e-10, atol=0)
    gradient_norms(model, images(batch, 5), layers="last")
    torch.testing.assert_close(gradient_norms(model, images(batch, 5)).norms, expected.norms)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_table_made_in_a_forward_before_hides_no_parameter(mode):
    expected = one_backward_a_sample(keeping(), images(3, 5)).norms
    model = keeping()
    with mode():
        model(images(3, 5)).sum()
    table = model.derived["table"]
    for method in (gradient_norms, one_backward_a_sample):
        torch.testing.assert_close(method(model, images(3, 5)).norms, expected)
        assert model.derived["table"] is table


def test_a_table_that_is_not_made_in_the_forward_is_left():
    def forward(m, x):
        return F.linear(x * m.scales.get("one", 1.0), m.w) * m.scales["two"]

    model = Model(forward, w=(4, 5))
    model.scales = {"one": torch.tensor(2.0), "two": torch.tensor(3.0)}
    hold_to_reference(model, images(3, 5))
    model.run = lambda m, x: F.linear(x * m.scales.get("one", 1.0), m.w)
    doubled = gradient_norms(model, images(3, 5)).norms
    model.scales = {}
    torch.testing.assert_close(gradient_norms(model, 2 * images(3, 5)).norms, doubled)


def test_weights_kept_by_parametrize_hide_no_parameter():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4))).double().eval()
    expected = one_backward_a_sample(model, images(3, 5)).norms
    with parametrize.cached():
        with torch.no_grad():
            model(images(3, 5))
        kept = dict(parametrize._cache)
        got = gradient_norms(model, images(3, 5)).norms
        assert [(key, id(x)) for key, x in parametrize._cache.items()] == [
            (key, id(x)) for key, x in kept.items()
        ]
    torch.testing.assert_close(got, expected)


def test_what_an_error_left_is_taken_back():
    model = keeping()
    with pytest.raises(RuntimeError, match="size of tensor"), preserve_state(model):
        model(images(3, 6))
    assert model.derived == {}
    assert model.forwards == 0


def test_a_model_that_writes_into_its_input_gets_a_copy():
    def writing(m, x):
        x.mul_(2)
        return F.linear(x.softmax(1), m.w)

    x = images(3, 5)
    model = Model(writing, w=(4, 5))
    hold_to_reference(model, x)
    assert torch.equal(x, images(3, 5))


def test_a_model_that_begins_to_write_into_its_input_is_refused_or_served():
    seen, unseen = [], ContextVar("unseen", default=False)

    def writing(m, x):
        return F.linear(x.mul_(2) if m.late or seen or unseen.get() else x * 2, m.w)

    model = Model(writing, w=(4, 5))
    model.late = False
    hold_to_reference(model, images(3, 5))
    model.late = True
    hold_to_reference(model, images(3, 5))
    model.late = False
    seen.append(1)
    hold_to_reference(model, images(3, 5))
    seen.clear()
    hold_to_reference(model, images(3, 5))
    unseen.set(True)
    with pytest.raises(ModelError, match="leaves its input as it is"):
        gradient_norms(model, images(3, 5))


def noted(m, x):
    m.calls += 1
    m.noted.last = len(x)
    m.noted.features = x * 2
    m.trace.append(x.mean())
    m.lazy = nn.Tanh()
    m.register_forward_hook(lambda module, args, output: output)
    return F.linear(x, m.w)


def drawing(m, x):
    random.random()
    np.random.rand()
    return F.linear(x + 0 * torch.randn_like(x), m.w)


def bounding(m, x):
    index = (x.abs() * 2).long() % 4
    return F.linear(F.embedding(index, m.table, max_norm=0.5).mean(1), m.w)


def clamping(m, x):
    m.w.data.clamp_(-0.1, 0.1)
    return F.linear(x, m.w)


def subtracting(m, x):
    return F.linear(x.sub_(0.5).tanh(), m.w)


CHANGING = {
    "notes": (noted, {"w": (4, 5)}),
    "draws": (drawing, {"w": (4, 5)}),
    "bounded table": (bounding, {"w": (4, 5), "table": (4, 5)}),
    "clamped weight": (clamping, {"w": (4, 5)}),
    "input": (subtracting, {"w": (4, 5)}),
}


def changing(name):
    model = Model(CHANGING[name][0], **CHANGING[name][1])
    model.calls, model.trace, model.noted = 0, [], types.SimpleNamespace(last=0)
    return model


def seen_of(model, x):
    """Return all that a forward may change."""
    return {
        "values": {name: value.tolist() for name, value in model.state_dict().items()},
        "images": x.tolist(),
        "notes": (model.calls, len(model.trace), vars(model.noted).copy(), sorted(vars(model))),
        "parts": (sorted(model._modules), len(model._forward_hooks)),
        "draws": (torch.get_rng_state().tolist(), random.getstate()),
        "numpy": np.random.get_state()[1].tolist(),
    }


ENTRIES = {
    "norms": gradient_norms,
    "one": lambda model, x: gradient_norms(model, x[:1]),
    "score": lambda model, x: GradNorm(model, layers="w")(x),
    "head": lambda model, x: find_head(model, x),
    "reference": one_backward_a_sample,
    "verify": verify,
}


@pytest.mark.parametrize("way", ENTRIES)
@pytest.mark.parametrize("name", CHANGING)
def test_all_is_left_as_it_was(name, way):
    model, x = changing(name), images(3, 5)
    before = seen_of(model, x)
    for _ in range(2):
        ENTRIES[way](model, x)
    assert seen_of(model, x) == before


@pytest.mark.parametrize("name", ["bounded table", "clamped weight", "input"])
def test_what_a_forward_changes_is_scored_with_what_it_changes_it_to(name):
    model, x = changing(name), images(3, 5)
    hold_to_reference(model, x)
    other = copy.deepcopy(model)
    other(x.clone())  # what it changes, it has changed
    torch.testing.assert_close(gradient_norms(model, x).norms, gradient_norms(other, x).norms)


@pytest.mark.parametrize("name", CHANGING)
def test_the_closed_form_is_one_forward_of_the_model(name):
    model, x = changing(name), images(3, 5)
    x.requires_grad_(name != "input")
    model.head = nn.Linear(4, 3).double()
    run = model.run
    model.run = lambda m, x: m.head(run(m, x))
    torch.manual_seed(0)
    logits, _ = GradNorm(model).logits_and_scores(x)
    assert not logits.requires_grad
    drawn = torch.rand(1)
    torch.manual_seed(0)
    alone = changing(name)
    alone(images(3, 5))
    assert torch.equal(torch.rand(1), drawn)
    assert model.calls == alone.calls
    assert torch.equal(x, images(3, 5))


def test_tensors_that_a_class_keeps_are_put_back():
    class Noting(Model):
        latest = None

    def forward(m, x):
        Noting.latest = Noting.first = x
        return F.linear(x, m.w)

    gradient_norms(Noting(forward, w=(4, 5)), images(3, 5))
    assert (Noting.latest, hasattr(Noting, "first")) == (None, False)


def test_threads_may_share_a_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 4)).double().eval()
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    x = images(4, 5)
    expected = one_backward_a_sample(model, x).norms
    wrong = []

    def ask(position):
        scorer = GradNorm(model)
        for _ in range(15):
            got = gradient_norms(model, x, layers=[names[position]]).norms[:, 0]
            score = scorer(x[position : position + 1])
            near = torch.allclose(got, expected[:, position])
            if not (near and torch.allclose(score, expected[position, 2])):
                wrong.append(position)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class Binding(nn.Module):
    """A network that binds a global variable in its first forward."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        global first_seen
        if "first_seen" not in globals():
            first_seen = x.detach()
        return self.head(x)


def test_a_global_that_a_forward_binds_anew_is_unbound_again():
    model = Binding().eval()
    for _ in range(2):
        with preserve_state(model):
            model(torch.ones(1, 3))
            assert "first_seen" in globals()
        assert "first_seen" not in globals()
