"""Calls that write into tensors, name their arguments, or take what a rule does not expect."""

import pytest
import torch
from helpers.small_models import Model, hold_to_reference, images
from torch import nn
from torch.nn import functional as F

from gradscore.engine import gradient_norms
from gradscore.errors import ModelError

LAYERS = {"w": (5, 5), "u": (4, 5)}


def hidden(m, x):
    return F.linear(x, m.w).tanh()


def into_zeros(m, x):
    h = torch.zeros(x.shape, dtype=x.dtype)
    h[..., :2] = m.s[:2]
    h[..., 2:] = hidden(m, x)[..., 2:]
    return F.linear(h * hidden(m, x), m.u)


def into_a_view_of_zeros(m, x):
    h = torch.zeros((len(x), 2, 5), dtype=x.dtype)
    h[:, 0].copy_(hidden(m, x))
    h.view(len(x), -1)[:, 5:] = hidden(m, x)
    return F.linear(((h + m.s).sigmoid() * hidden(m, x)[:, None]).sum(1), m.u)


def into_a_repeated_parameter(m, x):
    h = m.s.repeat(len(x), 1)
    h[:, 2:] = hidden(m, x)[:, 2:]
    return F.linear(h * hidden(m, x), m.u)


def into_a_parameter_repeated_by_index(m, x):
    h = m.s[None].repeat_interleave(len(x), 0)
    h[:, 2:] = hidden(m, x)[:, 2:]
    return F.linear(h * hidden(m, x), m.u)


def into_what_is_given(m, x):
    doubled = torch.empty(x.shape, dtype=x.dtype)
    torch.add(x, x, out=doubled)
    return F.linear(hidden(m, (doubled + m.s).tanh() * x), m.u)


def by_keyword(m, x):
    token = torch.broadcast_to(input=m.s, size=(len(x), 5))
    h = torch.cat(tensors=[hidden(m, x), token], dim=1)
    h = torch.relu_(input=h + torch.tile(input=m.s, dims=(2,)))
    return F.linear(input=h[:, :5] + h[:, 5:], weight=m.u)


def dropped(m, x):
    return F.linear(torch.dropout(hidden(m, x), 0.1, train=False), m.u)


def one_bias_for_all(m, x):
    return F.linear(hidden(m, x), m.u, m.one)


def a_bias_for_each_position(m, x):
    return F.linear(hidden(m, x), m.u, m.table).tanh().mean(1)


def vector_weight(m, x):
    return F.linear(hidden(m, x), m.s)[:, None] * m.u.sum(1)


def nothing_at_all(m, x):
    return F.linear(torch.cat([hidden(m, x), m.none.expand(len(x), 0)], dim=1), m.u)


def derived_inside(m, x):
    with torch.enable_grad():
        at = hidden(m, x).requires_grad_()
        (slope,) = torch.autograd.grad(F.linear(at, m.u).square().sum(), at, create_graph=True)
    return F.linear(slope, m.u)


def changed_on_the_way_back(m, x):
    h = hidden(m, x)
    if h.requires_grad:
        h.register_hook(lambda grad: grad * 2)
    return F.linear(h, m.u)


CASES = {
    "zeros": (into_zeros, {**LAYERS, "s": (5,)}, (3, 5)),
    "a view of zeros": (into_a_view_of_zeros, {**LAYERS, "s": (5,)}, (3, 5)),
    "a repeated parameter": (into_a_repeated_parameter, {**LAYERS, "s": (5,)}, (3, 5)),
    "repeated by index": (into_a_parameter_repeated_by_index, {**LAYERS, "s": (5,)}, (3, 5)),
    "out": (into_what_is_given, {**LAYERS, "s": (5,)}, (3, 5)),
    "keywords": (by_keyword, {**LAYERS, "s": (5,)}, (3, 5)),
    "dropout off": (dropped, LAYERS, (3, 5)),
    "one bias": (one_bias_for_all, {**LAYERS, "one": (1,)}, (3, 5)),
    "positions' bias": (a_bias_for_each_position, {**LAYERS, "table": (6, 4)}, (3, 6, 5)),
    "vector": (vector_weight, {**LAYERS, "s": (5,)}, (3, 5)),
    "nothing": (nothing_at_all, {**LAYERS, "none": (1, 0)}, (3, 5)),
    "derived inside": (derived_inside, LAYERS, (3, 5)),
    "hook on data": (changed_on_the_way_back, LAYERS, (3, 5)),
}


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("name", CASES)
def test_equals_reference(name, batch):
    forward, parameters, shape = CASES[name]
    hold_to_reference(Model(forward, **parameters), images(batch, *shape[1:]))


@pytest.mark.parametrize("shape", [(3, 5), (3, 6, 5)])
def test_complex_layers_are_left_to_the_generic_rule(shape):
    def forward(m, x):
        w = torch.view_as_complex(m.pairs)
        h = F.linear(x * (1 + 2j), w).abs()
        return F.linear(h.flatten(1, -2).mean(1) if h.ndim > 2 else h, m.u)

    model = Model(forward, pairs=(5, 5, 2), u=(4, 5))
    rules = hold_to_reference(model, images(*shape))
    assert rules["pairs"] == "generic (linear), pulled back"


def test_complex_parameters():
    torch.manual_seed(0)

    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(5, 3, 3, dtype=torch.complex128)
            self.fc = nn.Linear(3, 4, dtype=torch.complex128)

        def forward(self, x):
            return self.fc(self.conv(x * (1 + 2j)).mean(2)).abs()

    hold_to_reference(Complex().eval(), images(3, 5, 6))


def test_hooks_on_parameters_are_refused_as_long_as_they_are_there():
    model = Model(lambda m, x: F.linear(hidden(m, x), m.u), **LAYERS)
    handle = model.w.register_hook(lambda grad: grad * (grad > 0))
    with pytest.raises(ModelError, match="'w' with a hook on its gradient"):
        gradient_norms(model, images(3, 5))
    handle.remove()
    assert hold_to_reference(model, images(3, 5)) == {"w": "linear", "u": "linear"}


def test_bags_that_start_anywhere_and_sparse_tables():
    class Bags(nn.Module):
        def __init__(self, sparse):
            super().__init__()
            torch.manual_seed(0)
            self.bag = nn.EmbeddingBag(7, 5, mode="sum", sparse=sparse).double()
            self.fc = nn.Linear(5, 4).double()

        def forward(self, x):
            index = (x[:, 0].abs() * 3).long() % 7
            offsets = torch.arange(0, index.numel(), index.shape[1])
            return self.fc(self.bag(index.flatten(), offsets).tanh())

    for sparse in (False, True):
        rules = hold_to_reference(Bags(sparse).eval(), images(3, 2, 6))
        assert rules["fc.weight"] == "linear"


def test_a_generic_call_runs_in_the_autocast_that_it_was_recorded_in():
    def forward(m, x):
        with torch.autocast("cpu", torch.bfloat16):
            h = torch.addmm(m.s, F.linear(x, m.v).tanh(), m.w)
        return F.linear(h.float().tanh(), m.u)

    model = Model(forward, **LAYERS, v=(5, 5), s=(5,)).float()
    rules = hold_to_reference(model, images(3, 5).float(), rtol=2e-2)
    assert rules["w"] == "generic (addmm)"
