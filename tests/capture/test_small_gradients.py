"""Gradients of small parameters, whose norms are taken together, and never in anyone's memory."""

import math

import pytest
import torch
from torch import nn

import gradscore as gs
from gradscore.capture import small_gradients
from gradscore.capture.small_gradients import SmallGradients
from gradscore.objective import Objective
from gradscore.reference import backward_norms, loss_function
from gradscore.rules.rule import abs_norms

ORDERS = (1.0, 2.0, math.inf, 0.5)
SHAPES = ((4,), (4,), (2, 3), (), (4,), (0,))


@pytest.mark.parametrize("most_kept", [0, 8, 2**20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_norms_together_are_those_of_each_alone(monkeypatch, dtype, most_kept):
    monkeypatch.setattr(small_gradients, "MOST_KEPT", most_kept)
    torch.manual_seed(0)
    gradients = {f"p{k}": torch.randn(3, *shape, dtype=dtype) for k, shape in enumerate(SHAPES)}
    before = {name: gradient.clone() for name, gradient in gradients.items()}
    small = SmallGradients(ORDERS)
    for name, gradient in gradients.items():
        small.add(name, gradient, torch.zeros(3))
    found = small.norms()
    assert found.keys() == gradients.keys()
    for name, gradient in before.items():
        rows = gradient.reshape(3, math.prod(gradient.shape[1:]))
        assert torch.equal(found[name], abs_norms(rows.clone(), ORDERS))
        assert torch.equal(gradients[name], gradient)


def test_what_shares_memory_with_the_arrived_gradient_is_copied():
    arrived = torch.ones(3, 4)
    small = SmallGradients([1.0])
    small.add("shift", arrived.view(3, 2, 2), arrived)
    arrived.fill_(7)  # as the backward may go on to do
    assert small.norms()["shift"].tolist() == [[4.0]] * 3


class Shifted(nn.Module):
    """A table shaped as one sample's features is added, so that its gradient is the output's."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)
        self.shift, self.gate = nn.Parameter(torch.randn(1, 6)), nn.Parameter(torch.randn(()))
        self.double().eval()

    def forward(self, x):
        x = self.first(x)
        return self.last((x + self.shift).sin() * self.gate + x)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_a_layer_below_a_shift_has_the_norms_of_the_reference(p):
    torch.manual_seed(0)
    model, x = Shifted(), torch.randn(4, 5, dtype=torch.float64)
    found = gs.gradient_norms(model, x, p=p)
    assert "reference" not in found.rules.values()
    losses = [loss_function(Objective())] * 4
    (expected,) = backward_norms(model, x, dict(model.named_parameters()), losses, [p])
    torch.testing.assert_close(found.norms, expected, rtol=1e-9, atol=1e-15)
