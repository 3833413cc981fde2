"""Perturbed inputs against ODIN's and FGSM's equations, one input at a time in float64."""

import pytest
import torch
from torch import nn

from gradscore.extraction.probes import differentiable, fgsm, odin_logits, sign_of_gradient


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 5)]
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def images():
    return torch.randn(6, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def literal_gradient(model, image, loss):
    x = image[None].clone().requires_grad_()
    loss(model(x)[0]).backward()
    return x.grad[0]


@pytest.mark.parametrize("temperature", [1.0, 1000.0])
def test_odin_is_the_equation(model, images, temperature):
    got = odin_logits(model, images, temperature, [0.0014, 0.2])
    for epsilon, logits in zip([0.0014, 0.2], got, strict=True):
        for image, row in zip(images, logits, strict=True):
            gradient = literal_gradient(
                model, image, lambda f: torch.softmax(f / temperature, dim=0).max().log()
            )
            torch.testing.assert_close(row, model((image + epsilon * gradient.sign())[None])[0])


def test_odin_depends_on_its_temperature(model, images):
    one, other = (odin_logits(model, images, t, [0.2])[0] for t in (0.1, 1000.0))
    assert not torch.equal(one, other)


def test_fgsm_is_the_equation(model, images):
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    got = fgsm(model, images, labels, 0.05)
    for image, label, row in zip(images, labels, got, strict=True):
        gradient = literal_gradient(
            model, image, lambda f, y=label: nn.functional.cross_entropy(f, y)
        )
        torch.testing.assert_close(row, image + 0.05 * gradient.sign())


def test_a_confident_input_keeps_its_gradient(model, images):
    """In float32 one minus a softmax of 1 is 0, and so would be every sign."""
    model[-1].weight.data *= 500
    model.float()
    labels = model(images.float()).argmax(dim=1)
    assert (torch.softmax(model(images.float()), dim=1).amax(dim=1) == 1).any()
    assert (fgsm(model, images.float(), labels, 0.05) != images.float()).all()


def test_half_precision_rounds_no_gradient_to_zero(images):
    layer = nn.Conv2d(2, 1, 5).bfloat16()
    x = images.bfloat16()
    with differentiable(x) as (leaf, copy):
        tiny = torch.full((len(x), 1), 1e-42, dtype=torch.float64)
        sign = sign_of_gradient(leaf, layer(copy).flatten(1), tiny)
    assert (sign != 0).all()


def test_it_works_in_any_mode_and_leaves_everything_as_it_was(model, images):
    before = images.clone()
    model.insert(0, nn.ReLU(inplace=True))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        got = odin_logits(model, images, 1000.0, [0.1])[0]
    torch.testing.assert_close(images, before)
    expected = odin_logits(model, images, 1000.0, [0.1])[0]
    torch.testing.assert_close(got.clone(), expected.clone())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_where_the_gradient_is_zero_nothing_moves(model, images):
    model[0].weight.data.zero_()
    (got,) = odin_logits(model, images, 1000.0, [0.3])
    torch.testing.assert_close(got.clone(), model(images).detach())
