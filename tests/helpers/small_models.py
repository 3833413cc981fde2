"""Small models and images, and the engine checked on them against the reference."""

import torch
from torch import nn

from gradscore.engine import gradient_norms
from gradscore.models.preprocessing import Preprocessing
from gradscore.objective import Objective
from gradscore.reference import one_backward_a_sample


class Model(nn.Module):
    """A model from a function, with parameters by name."""

    def __init__(self, forward, **shapes):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=rng, dtype=torch.float64)
            setattr(self, name, nn.Parameter(value))
        self.register_buffer("index", torch.tensor([[0, 1, 2], [2, 1, 0], [1, 1, 3]]))
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def hold_to_reference(model, images, rtol=1e-10):
    """Compare with one backward a sample, and return what served each parameter."""
    for p in (0.5, 1.0, 2.0):
        got = gradient_norms(model, images, p=p)
        expected = one_backward_a_sample(model, images, Objective(p))
        torch.testing.assert_close(got.norms, expected.norms, rtol=rtol, atol=1e-12)
        assert got.parameters == expected.parameters
    return got.rules


def images(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_model(seed=0, head=True):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.Flatten()]
    layers += [nn.Linear(20, 6)] if head else [nn.Linear(20, 6), nn.ReLU()]
    model = nn.Sequential(*layers).eval()
    model.preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="L")
    model.spec = "small"
    return model
