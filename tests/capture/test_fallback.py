"""What the engine leaves to one backward a sample: each gets its own gradient, and no more."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscore import GradNorm, extract, gradient_norms, verify
from gradscore.capture.recording import record
from gradscore.data import open_set
from gradscore.models.preprocessing import Preprocessing
from gradscore.reference import one_backward_a_sample
from gradscore.run import RunStore


class Routed(nn.Module):
    """Rows with a positive entry go through ``w``, the others to ``b`` alone."""

    preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="L")
    spec = "routed"

    def __init__(self, entry=0):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(torch.randn(6, 64, dtype=torch.float64) / 8)
        self.b = nn.Parameter(torch.zeros(6, dtype=torch.float64))
        self.entry, self.calls, self.latest = entry, 0, None
        self.register_buffer("forwards", torch.zeros(()))
        self.eval()

    def forward(self, x):
        self.calls, self.latest = self.calls + 1, x
        self.forwards += 1
        x = x.flatten(1)
        rows = x[:, self.entry] > 0
        logits = x[:, :6] * 2 + self.b
        if rows.any():
            logits = logits.index_put((rows,), F.linear(x[rows], self.w))
        return logits


def images():
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    x[:, 0, 0, 0] = torch.tensor([-1.0, 1, 1, -1, -1, 1])
    return x


def by_hand(model, x):
    """Return the norms: the gradient of one row of ``x w^T`` is an outer product."""
    x = x.flatten(1)
    gradient = F.linear(x, model.w.detach()).softmax(1) - 1 / 6
    return gradient.abs().sum(1) * x.abs().sum(1) * (x[:, model.entry] > 0)


def asked_twice(model, x):
    recording = record(model, x, {"w": model.w})
    cotangent = recording.logits.softmax(1) - 1 / 6
    recording.norms(cotangent.flip(0), (1.0,))
    return recording.norms(cotangent, (2.0, 1.0))[1, :, 0]


WAYS = {
    "gradient_norms": lambda model, x: gradient_norms(model, x).norms[:, 0],
    "GradNorm": lambda model, x: GradNorm(model, layers="w")(x),
    "several questions": asked_twice,
    "reference": lambda model, x: one_backward_a_sample(model, x).norms[:, 0],
}


@pytest.mark.parametrize("way", WAYS)
def test_no_sample_gets_the_gradient_of_another(way):
    model = Routed()
    torch.testing.assert_close(WAYS[way](model, images()), by_hand(model, images()))


def test_verify_holds_routed_rows():
    found = verify(Routed(), images())
    assert found.rules["w"] == "reference"
    assert found.max_relative_error < 1e-12


@pytest.mark.parametrize("gradients", ["rules", "reference"])
def test_extract_records_routed_rows(tmp_path, gradients):
    model = Routed(entry=20).float()
    how = {"layers": "w", "limit": 12, "batch_size": 5, "gradients": gradients}
    extract(model, {"digits": ("id", "digits:test")}, tmp_path, **how)
    store = RunStore(tmp_path)
    digits = open_set("digits:test", limit=12)
    x = torch.stack([model.preprocessing(digits[k]) for k in range(12)])
    expected = by_hand(model, x)
    assert 0 < (expected == 0).sum() < 12
    (name,) = store.info.passes
    blocks = store.blocks("digits", fields=("index",), norms=[name])
    got = torch.cat([torch.from_numpy(block[name][:, 0]) for block in blocks])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("lock", [None, threading.Lock()], ids=["copied", "uncopyable"])
@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_of_the_reference_remains_in_the_model(lock, frozen):
    model = Routed().requires_grad_(not frozen)
    model.lock, model.w.grad = lock, torch.ones_like(model.w)
    grad, value = model.w.grad, model.w.detach().clone()
    gradient_norms(model, images())
    assert (model.calls, model.latest, float(model.forwards)) == (0, None, 0)
    assert model.w.requires_grad is not frozen
    assert model.w.grad is grad
    assert torch.equal(grad, torch.ones_like(grad))
    assert torch.equal(model.w, value)
