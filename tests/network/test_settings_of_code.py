"""Settings that a model's code reads from elsewhere are part of its state."""

import dataclasses
import functools
import types
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers.small_models import images
from torch import nn

import gradscore as gs
from gradscore.errors import ModelError
from gradscore.network import state_of

NUMBER = 0
TABLE = {"gate": 0}
SETTINGS = types.SimpleNamespace(gate=0)
CONFIG = types.ModuleType("config_of_a_user")
CONFIG.gate = 0


@dataclasses.dataclass(slots=True)
class Slotted:
    """Settings without a dictionary."""

    gate: int = 0

    def read(self):
        return self.gate


def helper():
    return NUMBER


def closed_over():
    gate = 0

    def read():
        return gate

    def turn():
        nonlocal gate
        gate = 1

    return read, turn


READ, TURN = closed_over()


def turn_number():
    global NUMBER
    NUMBER = 1


class Gated(nn.Module):
    """A classifier that mixes its samples where a gate is open."""

    shared: ClassVar = {"gate": 0}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(5, 6), nn.Linear(6, 4)
        self.slotted = Slotted()
        self.method = self.slotted.read
        self.array, self.bytes = np.zeros(9), bytearray(1)
        self.partial = functools.partial(dict, gate=0)
        self.read, self.turn = closed_over()
        self.long, self.named = [0] * 100, dict.fromkeys(range(100), 0)
        self.double().eval()

    def forward(self, x):
        h = self.body(x).tanh()
        return self.head(h - self.gate() * h.mean(0))

    def gate(self):
        return 0


GATES = {
    "slots": (lambda m: m.slotted.gate, lambda m: setattr(m.slotted, "gate", 1)),
    "a bound method": (lambda m: m.method(), lambda m: setattr(m.slotted, "gate", 1)),
    "an array": (lambda m: m.array[7], lambda m: m.array.fill(1)),
    "bytes": (lambda m: m.bytes[0], lambda m: m.bytes.__setitem__(0, 1)),
    "a partial": (lambda m: m.partial()["gate"], lambda m: m.partial.keywords.update(gate=1)),
    "a closure": (lambda m: m.read(), lambda m: m.turn()),
    "a long list": (lambda m: m.long[70], lambda m: m.long.__setitem__(70, 1)),
    "a long dictionary": (lambda m: m.named[70], lambda m: m.named.update({70: 1})),
    "a class's table": (lambda m: m.shared["gate"], lambda m: m.shared.update(gate=1)),
    "a global": (lambda m: NUMBER, lambda m: turn_number()),
    "a global behind a function": (lambda m: helper(), lambda m: turn_number()),
    "a global table": (lambda m: TABLE["gate"], lambda m: TABLE.update(gate=1)),
    "a global object": (lambda m: SETTINGS.gate, lambda m: setattr(SETTINGS, "gate", 1)),
    "a module of settings": (lambda m: CONFIG.gate, lambda m: setattr(CONFIG, "gate", 1)),
    "a global closure": (lambda m: READ(), lambda m: TURN()),
}


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """Close the gates outside of models."""
    monkeypatch.setitem(globals(), "NUMBER", 0)
    monkeypatch.setitem(globals(), "SETTINGS", types.SimpleNamespace(gate=0))
    monkeypatch.setitem(globals(), "TABLE", {"gate": 0})
    monkeypatch.setattr(CONFIG, "gate", 0)
    monkeypatch.setattr(Gated, "shared", {"gate": 0})
    read, turn = closed_over()
    monkeypatch.setitem(globals(), "READ", read)
    monkeypatch.setitem(globals(), "TURN", turn)


@pytest.mark.parametrize("place", GATES)
def test_a_gate_that_opens_between_two_calls_is_seen(place):
    read, turn = GATES[place]
    model, x = type("WithGate", (Gated,), {"gate": read})(), images(3, 5)
    scorer, before = gs.GradNorm(model), state_of(model)
    first = scorer(x)
    assert state_of(model) is before
    assert torch.equal(scorer(x), first)
    turn(model)
    assert state_of(model) is not before
    with pytest.raises(ModelError, match="depend"):
        scorer(x)


def test_hooks_of_all_modules_are_part_of_a_state():
    model, x = Gated(), images(3, 5)
    scorer, before = gs.GradNorm(model), state_of(model)
    scorer(x)

    def mixing(module, args, out):
        return out - out.mean(0) if getattr(module, "out_features", 0) == 6 else None

    handle = nn.modules.module.register_module_forward_hook(mixing)
    try:
        assert state_of(model) is not before
        with pytest.raises(ModelError, match="depend"):
            scorer(x)
    finally:
        handle.remove()
    assert state_of(model) is before


def chain():
    """Return objects that each hold the next one."""
    link = None
    for _ in range(3000):
        link = types.SimpleNamespace(next=link)
    return link


def circle():
    """Return a list that holds itself twice."""
    held = [1]
    held += [held, held]
    return held


def unwrapped():
    """Return a function that says it wraps itself."""

    def function():
        return 1

    function.__wrapped__ = function
    return function


@pytest.mark.parametrize("place", ["instance", "class"])
@pytest.mark.parametrize("endless", [chain, circle, unwrapped])
def test_what_has_no_end_is_looked_at_all_the_same(endless, place):
    kept = endless()
    kind = type("Endless", (Gated,), {"gate": lambda m: 0, "kept": kept})
    model, x = kind(), images(3, 5)
    if place == "instance":
        model.kept = kept
    scorer = gs.GradNorm(model)
    assert torch.equal(scorer(x), scorer(x))
    before = state_of(model)
    assert state_of(model) is before
