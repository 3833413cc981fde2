"""``verify`` finds every error that is planted in the engine, and nothing where there is none."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscore import verification
from gradscore.capture import recording
from gradscore.capture.batch_dimension import BatchDimension
from gradscore.capture.crosscheck import CrossCheck
from gradscore.objective import Objective
from gradscore.rules import RULES
from gradscore.verification import verify

LINEAR, BIAS = RULES[F.linear, "weight"], RULES[F.linear, "bias"]


class Net(nn.Module):
    """A layer at positions, a tied one, rows that are routed (by the reference), and a head."""

    def __init__(self, after=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.tied = nn.Linear(5, 6), nn.Linear(6, 6)
        self.routed = nn.Parameter(torch.randn(6, 6))
        self.fc, self.after = nn.Linear(6, 3), after or nn.Identity()
        self.double().eval()

    def forward(self, x):
        h = self.tied(self.tied(self.embed(x).tanh()).tanh()).mean(1)
        rows = x[:, 0, 0] > 0
        if rows.any():
            h = h.index_put((rows,), F.linear(h[rows], self.routed).tanh())
        return self.after(self.fc(h))


def images():
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 0, 0] = torch.tensor([1.0, -1.0, -1.0, 1.0])
    return x


def changing(monkeypatch, owner, name, change):
    """Replace a function by what ``change`` makes of it."""
    monkeypatch.setattr(owner, name, change(getattr(owner, name)))


def of_rule(key, **changed):
    return lambda patch: patch.setitem(RULES, key, replace(RULES[key], **changed))


def of_norms(change):
    """Plant an error in all that a recording answers."""
    return lambda patch: changing(patch, recording.Recording, "norms", change)


def of_tied(change):
    def plant(patch):
        changing(patch, recording, "tie_parameters", lambda f: lambda *args: change(f(*args)))

    return plant


def without_a_parameter(groups):
    return [group for group in groups if "embed.weight" not in group.names]


def counted_once(groups):
    for group in groups:
        group.arguments = group.arguments[:1]
    return groups


def mixed(record):
    return lambda model, x, selected: record(model, x + 0.1 * x.mean(0), selected)


def of_others(batch_first):
    return lambda place, x: batch_first(place, x).roll(1, 0)


def with_a_clamp(patch):
    def claimed(find):
        return lambda *args: replace(find(*args), weights=("fc.weight",), closed_form=True)

    def observed(observe):
        return lambda model, head: observe(model, replace(head, module="fc"))

    changing(patch, verification, "find_head", claimed)
    changing(patch, verification, "observe_features", observed)
    return nn.Hardtanh(-0.1, 0.1)


def of_loss(**changed):
    def change(gradient):
        return lambda objective, logits: gradient(replace(objective, **changed), logits)

    return lambda patch: changing(patch, Objective, "logit_gradient", change)


def abs_too_late(call, argument, grad, orders):
    total = BIAS.gradient(call, argument, grad).sum(1).abs()
    return torch.stack([total] * len(orders), dim=1)


def abs_too_early(call, argument, grad, orders):
    positive = replace(call, arguments={"input": call.arguments["input"].abs()})
    return LINEAR.norms(positive, argument, grad.abs(), orders)


def off_by_a_hundredth(*args):
    return 1.01 * LINEAR.norms(*args)


def no_number(*args):
    return math.nan * LINEAR.norms(*args)


def drifted(norms):
    return lambda self, cotangent, *args, **how: norms(self, cotangent.roll(1, 0), *args, **how)


def drifted_for_the_reference(norms):
    def rolled(self, samples, cotangent, *args):
        return norms(self, samples, cotangent.roll(1, 0), *args)

    return rolled


def of_another_order(norms):
    def other(self, cotangent, orders, **how):
        return norms(self, cotangent, [p + 0.01 for p in orders], **how)

    return other


def rounded(norms):
    return lambda self, *args, **how: norms(self, *args, **how).float().double()


def zeroed(norms):
    def some(self, *args, **how):
        return norms(self, *args, **how).index_fill(1, torch.tensor([1 % len(self.logits)]), 0)

    return some


PLANTED = {
    "a rule off by 1%": of_rule((F.linear, "weight"), norms=off_by_a_hundredth),
    "a missed parameter": of_tied(without_a_parameter),
    "a mixed batch": lambda patch: changing(patch, recording, "record_forward", mixed),
    "drifted cotangents": of_norms(drifted),
    "cotangents drifted for the reference": lambda patch: changing(
        patch, CrossCheck, "autograd_norms", drifted_for_the_reference
    ),
    "rows of other samples": lambda patch: changing(
        patch, BatchDimension, "batch_first", of_others
    ),
    "a tied parameter counted once": of_tied(counted_once),
    "a closed form before a clamp": with_a_clamp,
    "another temperature": of_loss(temperature=1.01),
    "another target": of_loss(target="one-hot"),
    "another p": of_norms(of_another_order),
    "a sample zeroed": of_norms(zeroed),
    "abs too late": of_rule((F.linear, "bias"), norms=abs_too_late),
    "abs too early": of_rule((F.linear, "weight"), norms=abs_too_early),
    "no number": of_rule((F.linear, "weight"), norms=no_number),
    "single precision": of_norms(rounded),
}


@pytest.fixture(autouse=True)
def _uncorrected(monkeypatch):
    """Let the engine's own comparison with autograd correct nothing."""
    monkeypatch.setattr(CrossCheck, "_differing", lambda *args: frozenset())


def test_nothing_is_found_where_nothing_is_planted():
    found = verify(Net(), images())
    assert found.max_relative_error < 1e-12
    assert found.rules["routed"] == "reference"
    assert found.closed_form_error is not None


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found(name, monkeypatch):
    after = PLANTED[name](monkeypatch)
    found = verify(Net(after), images())
    least = 1e-8 if name == "single precision" else 1e-4
    assert found.max_relative_error > least
    assert found.worst in (*found.errors, "whole norm", "closed form")
    assert (found.worst == "closed form") == (name == "a closed form before a clamp")
