"""What is remembered of a model is forgotten as soon as anything of the model changes."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from helpers.small_models import hold_to_reference, images
from torch import nn

import gradscore as gs
from gradscore.network import state_of
from gradscore.network.contents import contents_of
from gradscore.network.facts import ignore_changes


class Gated(nn.Module):
    """A network in which anything may be a gate."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("gate", torch.zeros(()))
        self.mask = torch.ones(3)
        self.level, self.mode, self.flag, self.sizes = 0.0, "plain", False, (1, 2)
        self.listed, self.settings = [0.0], {"a": 1}
        self.config = SimpleNamespace(scale=1.0)
        self.eval()

    def forward(self, x):
        return self.head(self.norm(self.body(x)).relu())


def in_place(model):
    with torch.no_grad():
        model.body.weight.mul_(2)


CHANGES = {
    "weights in place": in_place,
    "weights through data": lambda m: setattr(m.body.weight, "data", m.body.weight.data * 2),
    "gate in place": lambda m: m.gate.fill_(1),
    "gate through data": lambda m: m.gate.data.fill_(1),
    "parameter": lambda m: setattr(m.head, "bias", nn.Parameter(torch.ones(4))),
    "module": lambda m: setattr(m, "head", nn.Linear(6, 4)),
    "train mode": lambda m: m.norm.train(),
    "number": lambda m: setattr(m, "level", 1.0),
    "text": lambda m: setattr(m, "mode", "mixing"),
    "flag": lambda m: setattr(m, "flag", True),
    "tuple": lambda m: setattr(m, "sizes", (1, 3)),
    "entry of a list": lambda m: m.listed.__setitem__(0, 1.0),
    "entry of a dictionary": lambda m: m.settings.update(a=2),
    "settings object": lambda m: setattr(m.config, "scale", 2.0),
    "unregistered tensor": lambda m: m.mask.zero_(),
    "forward": lambda m: setattr(m, "forward", lambda x: m.head(m.body(x))),
    "hook": lambda m: m.body.register_forward_hook(lambda *_: None),
    "eps": lambda m: setattr(m.norm, "eps", 1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_another_state(change):
    model = Gated()
    before = state_of(model)
    assert state_of(model) is before
    CHANGES[change](model)
    assert state_of(model) is not before
    assert state_of(model) is state_of(model)


def test_a_forward_and_its_gradients_change_nothing():
    model, x = Gated(), torch.randn(3, 5)
    before = state_of(model)
    model(x).sum().backward()
    gs.gradient_norms(model, x, layers="last")
    gs.GradNorm(model)(x)
    assert state_of(model) is before


def test_autocast_and_the_default_type_are_part_of_a_state():
    model = Gated()
    before = state_of(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert state_of(model) is not before
    torch.set_default_dtype(torch.float64)
    try:
        assert state_of(model) is not before
    finally:
        torch.set_default_dtype(torch.float32)
    assert state_of(model) is before


def test_a_state_that_comes_again_is_known():
    model = Gated()
    before = state_of(model)
    before.found["what"] = "answer"
    model.level = 1.0
    assert state_of(model).found == {}
    model.level = 0.0
    assert state_of(model).found == {"what": "answer"}


def test_a_successor_at_the_same_address_is_another():
    model = Gated()
    states = set()
    for _ in range(8):
        model.head = nn.Linear(6, 4)
        states.add(state_of(model))
    assert len(states) == 8


def test_what_a_forward_writes_is_left_out():
    model = Gated()
    before = state_of(model)
    other = copy.deepcopy(model)
    contents = contents_of(other)
    other.level, other.latest = 5.0, torch.ones(3)
    other.gate.add_(1)
    ignore_changes(model, contents, contents_of(other))
    assert state_of(model) is before
    model.level, model.latest = 7.0, torch.ones(2)
    model.gate.add_(1)
    assert state_of(model) is before
    model.mode = "another"
    assert state_of(model) is not before


def test_modules_that_a_list_holds_count():
    model = Gated()
    model.listed = [nn.Linear(2, 2)]
    before = state_of(model)
    model.listed[0].weight.data.fill_(1)
    model.listed[0].bias = None
    assert state_of(model) is not before


def test_a_state_keeps_no_model_alive():
    model = Gated()
    model.again = model.listed
    model.__dict__["parent"] = model
    state_of(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_head_is_found_anew_where_weights_changed_in_place():
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double().eval()
    x = images(3, 5)
    scorer = gs.GradNorm(model)
    scorer(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    expected = hold_to_reference(model, x)
    assert expected
    torch.testing.assert_close(scorer(x), gs.gradient_norms(model, x, layers="last").norms[:, 0])


def test_a_state_that_came_back_stays():
    model = Gated()
    first = state_of(model)
    model.level = 1.0
    assert state_of(model) is not first
    model.level = 0.0
    assert [state_of(model) is first for _ in range(3)] == [True] * 3
