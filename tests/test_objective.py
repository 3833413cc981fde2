"""The loss against its definition; its gradient and deviations against autograd in float64."""

import math

import pytest
import torch

from gradscore.errors import InvalidArgument
from gradscore.objective import (
    TARGETS,
    Objective,
    RecordedObjective,
    check_temperature,
    kl_divergence,
    one_hot_deviation,
    uniform_deviation,
)

TEMPERATURES = [0.5, 1.0, 2.0, 1024.0]


def drawn(*shape, scale=3.0):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=rng, dtype=torch.float64) * scale


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_uniform_loss_is_the_divergence_from_uniform(temperature):
    f = drawn(5, 7)
    q = torch.softmax(f / temperature, dim=1)
    expected = (1 / 7 * (1 / 7 / q).log()).sum(dim=1)
    found = Objective(temperature=temperature).loss(f)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(kl_divergence(f, temperature), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_one_hot_loss_is_the_cross_entropy_to_the_first_largest(temperature):
    f = torch.tensor([[0.0, 2.0, 2.0], [1.0, 0.0, -3.0]], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(
        f / temperature, torch.tensor([1, 0]), reduction="none"
    )
    objective = Objective(temperature=temperature, target="one-hot")
    torch.testing.assert_close(objective.loss(f), expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_logit_gradient_equals_autograd(target, temperature, classes):
    f = drawn(6, classes).requires_grad_()
    objective = Objective(temperature=temperature, target=target)
    (expected,) = torch.autograd.grad(objective.loss(f).sum(), f)
    found = objective.logit_gradient(f)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_logit_gradient_comes_back_in_float64(dtype):
    f = drawn(2, 4).to(dtype)
    gradient = Objective().logit_gradient
    assert torch.equal(gradient(f), gradient(f.double()))


@pytest.mark.parametrize("deviation", [uniform_deviation, one_hot_deviation])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_deviations_sum_to_zero(deviation, scale):
    entries = deviation(drawn(4, 100, scale=scale), 1.0)
    assert (entries.sum(dim=1).abs() <= 1e-13 * entries.abs().sum(dim=1)).all()


@pytest.mark.parametrize("temperature", [1.0, 1024.0, 1e8])
def test_uniform_deviation_keeps_its_digits_near_uniform(temperature):
    f = drawn(4, 10, scale=1e-3)
    z = f / temperature
    z = z - z.mean(dim=1, keepdim=True)
    second_order = z + (z * z - (z * z).mean(dim=1, keepdim=True)) / 2  # of exp z / mean exp z - 1
    found = uniform_deviation(f, temperature)
    torch.testing.assert_close(found, second_order, rtol=1e-4, atol=0)


def test_one_hot_deviation_of_a_confident_sample_is_not_zero():
    found = one_hot_deviation(torch.tensor([[90.0, 0.0, 0.0]], dtype=torch.float64), 1.0)
    e = math.exp(-90)
    expected = torch.tensor([[-2 * e, e, e]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 1e4])
def test_divergence_keeps_its_digits_near_uniform(temperature):
    f = drawn(3, 50, scale=1e-3)
    z = f / temperature
    half_variance = z.var(dim=1, correction=0) / 2
    torch.testing.assert_close(kl_divergence(f, temperature), half_variance, rtol=1e-3, atol=0)


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan, "hot", None])
def test_a_bad_temperature_is_named(temperature):
    for check in (check_temperature, lambda t: Objective(temperature=t)):
        with pytest.raises(InvalidArgument, match="Expected temperature > 0, got "):
            check(temperature)


@pytest.mark.parametrize("order", [0, -1.0, math.nan, "one", None])
def test_a_bad_order_is_named(order):
    with pytest.raises(InvalidArgument, match="Expected a norm of order p > 0, got p = "):
        Objective(p=order)


def test_an_unknown_target_lists_the_known():
    with pytest.raises(InvalidArgument, match="Expected target uniform or one-hot, got 'soft'"):
        Objective(target="soft")
    known = "Expected target uniform or one-hot or all-ones, got 'soft'"
    with pytest.raises(InvalidArgument, match=known):
        RecordedObjective(target="soft")


def test_norms_are_recorded_for_the_all_ones_target_but_not_scored():
    assert RecordedObjective(target="all-ones").target == "all-ones"
    with pytest.raises(InvalidArgument, match="uniform or one-hot, got 'all-ones'"):
        Objective(target="all-ones")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_the_all_ones_gradient_is_that_of_the_binary_cross_entropy(temperature):
    f = (drawn(4, 6) * 5).requires_grad_()
    ones = torch.ones_like(f[0])
    scaled = f / temperature
    losses = [torch.nn.functional.binary_cross_entropy_with_logits(row, ones) for row in scaled]
    (expected,) = torch.autograd.grad(sum(losses), f)
    got = RecordedObjective(1.0, temperature, "all-ones").logit_gradient(f.detach())
    # Autograd subtracts from one, and so keeps no digit of the smallest gradients.
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-15)
