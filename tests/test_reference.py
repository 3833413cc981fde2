"""The references agree with each other and with the plain definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscore.errors import InvalidArgument, ModelError
from gradscore.reference import one_backward_a_sample, per_sample_vmap


def model_and_images(batch=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    return model.double().eval(), torch.randn(batch, 1, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("target", ["uniform", "one-hot"])
def test_both_equal_the_definition(p, target):
    model, images = model_and_images()
    one = one_backward_a_sample(model, images, p=p, target=target, temperature=2.0)
    vmapped = per_sample_vmap(model, images, p=p, target=target, temperature=2.0)
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


def test_batch_norm_after_tokens_is_right_for_a_single_image():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3).double().eval()

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            tokens = self.norm(x).flatten(2).transpose(1, 2).contiguous()
            return (tokens * torch.arange(16.0).view(16, 1)).tanh().sum(dim=1)

    images = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    got = one_backward_a_sample(Tokens(), images)
    torch.testing.assert_close(got.norms, per_sample_vmap(Tokens(), images).norms)


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
