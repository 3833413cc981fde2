"""The closed form must equal what autograd computes, one sample at a time, and keep its digits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from gradscore.closed_form import (
    deviation_norm,
    deviation_norms,
    feature_norm,
    feature_norms,
    last_layer_score,
    plain,
)
from gradscore.errors import InvalidArgument
from gradscore.norms import vector_norm
from gradscore.objective import Objective, one_hot_deviation, uniform_deviation

SHAPES = {
    "one-row": (1, 3, 2),
    "one-class": (4, 3, 1),
    "one-feature": (4, 1, 5),
    "small": (5, 7, 4),
    "narrowest-wide": (6, 4, 33),
    "imagenet-head": (2, 512, 1000),
}
ORDERS = [0.3, 0.5, 0.8, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, math.inf]
TEMPERATURES = [0.5, 1.0, 2.0, 32.0, 1024.0]
TARGETS = ["uniform", "one-hot"]
AUTOGRAD_DIGITS = {"uniform": 1e-9, "one-hot": 1e-6}
"""Of a confident sample's one-hot gradient, softmax minus one, autograd itself keeps no more."""


def drawn(batch, in_features, classes, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    sizes = [(batch, in_features), (classes, in_features), (classes,)]
    return [torch.randn(size, generator=rng, dtype=torch.float64).to(dtype) for size in sizes]


def autograd_score(x, weight, bias, p, temperature, target):
    """Slow and plainly right: one backward for each sample."""
    weight = weight.clone().requires_grad_()
    norms = []
    for sample in x:
        objective = Objective(temperature=temperature, target=target)
        value = objective.loss(linear(sample[None], weight, bias))
        (grad,) = torch.autograd.grad(value.sum(), weight)
        norms.append(vector_norm(grad.flatten(), p))
    return torch.stack(norms) * (1 if target == "uniform" else -1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_autograd(shape, temperature, target):
    x, weight, bias = drawn(*shape)
    for p in (0.3, 1.0, 2.0, 5.0, math.inf):
        how = {"p": p, "temperature": temperature, "target": target}
        expected = autograd_score(x, weight, bias, **how)
        score = last_layer_score(x, linear(x, weight, bias), **how)
        torch.testing.assert_close(score, expected, rtol=AUTOGRAD_DIGITS[target], atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 6),
    in_features=st.integers(1, 9),
    classes=st.integers(2, 40),
    p=st.floats(0.3, 20),
    temperature=st.floats(0.2, 100),
    seed=st.integers(0, 2**31),
    target=st.sampled_from(TARGETS),
)
def test_equals_autograd_on_any_shape(batch, in_features, classes, p, temperature, seed, target):
    rng = torch.Generator().manual_seed(seed)
    x, weight = (
        torch.randn(rows, in_features, generator=rng, dtype=torch.float64)
        for rows in (batch, classes)
    )
    how = {"p": p, "temperature": temperature, "target": target}
    expected = autograd_score(x, weight, None, **how)
    score = last_layer_score(x, linear(x, weight), **how)
    # Autograd subtracts one from the softmax, and rounds each of its entries to so much.
    rounding = 1e-15 * classes ** (1 / p) * vector_norm(x, p, dim=1).max().item() / temperature
    torch.testing.assert_close(score, expected, rtol=AUTOGRAD_DIGITS[target], atol=rounding)


LOGITS = {
    "flat": lambda n: torch.zeros(n),
    "almost-flat": lambda n: torch.linspace(-1e-3, 1e-3, n),
    "drawn": lambda n: torch.randn(n, generator=torch.Generator().manual_seed(n)),
    "spread": lambda n: 5 * torch.randn(n, generator=torch.Generator().manual_seed(n)),
    "offset": lambda n: 1000 + torch.randn(n, generator=torch.Generator().manual_seed(n)),
    "one-above": lambda n: torch.arange(n).eq(0) * 5.0,
    "one-far-above": lambda n: torch.arange(n).eq(n - 1) * 60.0,
    "one-far-below": lambda n: torch.arange(n).eq(n - 1) * -60.0,
    "halves": lambda n: torch.arange(n).lt((n + 1) // 2) * 0.1,
    "minus-infinity": lambda n: torch.where(torch.arange(n) == n - 1, -math.inf, 0.5),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("classes", [2, 3, 10, 32, 33, 1000, 21843])
def test_float32_keeps_its_digits(classes, target):
    logits = torch.stack([row(classes) for row in LOGITS.values()])
    deviation = uniform_deviation if target == "uniform" else one_hot_deviation
    for temperature in TEMPERATURES:
        exact = deviation(logits.double(), temperature)
        for p in ORDERS:
            found = deviation_norm(logits, p=p, temperature=temperature, target=target)
            expected = vector_norm(exact, p, dim=1)
            representable = expected.clamp(max=torch.finfo(torch.float32).max)
            assert found.dtype == torch.float32
            torch.testing.assert_close(
                found.double().clamp(max=torch.finfo(torch.float32).max),
                representable,
                rtol=2e-5,
                atol=1e-37,
                msg=lambda text, p=p, t=temperature: f"p = {p}, T = {t}: {text}",
            )


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("classes", [10, 1000, 21843])
def test_float64_from_float32_is_within_a_millionth_and_tells_confident_rows_apart(classes, p):
    logits = torch.stack([row(classes) for row in LOGITS.values()])
    for temperature in TEMPERATURES:
        expected = vector_norm(uniform_deviation(logits.double(), temperature), p, dim=1)
        found = deviation_norms(logits, [Objective(p, temperature, "uniform")])[0]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    gaps = torch.linspace(15, 25, 50)
    confident = torch.cat([gaps[:, None], LOGITS["drawn"](classes - 1).expand(50, -1)], dim=1)
    largest = vector_norm(torch.tensor([classes - 1.0] + [-1.0] * (classes - 1)).double(), p)
    found = largest - deviation_norms(confident, [Objective(p, 1.0, "uniform")])[0]
    exact = vector_norm(uniform_deviation(confident.double(), 1.0), p, dim=1)
    assert found.diff().lt(0).all()
    # What is left of float64 after the subtraction of numbers of size C.
    torch.testing.assert_close(found, largest - exact, rtol=1e-5, atol=classes * 1e-15)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 32.0, 1024.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_many_settings_are_each_as_if_alone(classes, temperature, target):
    f = torch.randn(7, classes, generator=torch.Generator().manual_seed(classes)) * 4
    orders = (*ORDERS, 1.5, 7.5)
    deviation = uniform_deviation if target == "uniform" else one_hot_deviation
    exact = deviation(f.double(), temperature)
    found = deviation_norms(f, [Objective(p, temperature, target) for p in orders])
    for p, norms in zip(orders, found, strict=True):
        torch.testing.assert_close(norms, vector_norm(exact, p, dim=1), rtol=1e-6, atol=0)


def test_settings_in_any_order_answer_in_that_order():
    f = drawn(5, 7, 4, torch.float32)[0]
    settings = [Objective(p, t, y) for p in (2.0, 1.0) for y in TARGETS for t in (8.0, 0.5)]
    for setting, norms in zip(settings, deviation_norms(f, settings), strict=True):
        assert torch.equal(norms, deviation_norms(f, [setting])[0])


def test_norms_of_zeros_huge_and_tiny_rows():
    rows = torch.stack([torch.zeros(6), torch.full((6,), 1e30), torch.full((6,), 1e-30)])
    orders = (*ORDERS, 1.5, 7.5)
    for p, norms in zip(orders, feature_norms(rows, orders), strict=True):
        expected = rows[:, 0].double() * 6 ** (1 / p)
        torch.testing.assert_close(norms, expected, rtol=1e-6, atol=0)


def test_a_confident_sample_keeps_a_score_beyond_float32_rounding():
    logits = torch.tensor([[80.0, 0.0, 1.0], [200.0, 0.0, 0.0]])
    score = last_layer_score(torch.ones(2, 1), logits, target="one-hot")
    expected = torch.tensor([-2 * (1 + math.e) * math.exp(-80), -4 * math.exp(-200)])
    torch.testing.assert_close(score, expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_half_precision_equals_float32_on_the_same_values(dtype, target, temperature):
    x, logits = torch.full((3, 2048), 100.0, dtype=dtype), drawn(1, 50, 3)[1].to(dtype)
    how = {"target": target, "temperature": temperature}
    score = last_layer_score(x, logits, **how)
    assert score.dtype == torch.float32
    assert torch.equal(score, last_layer_score(x.float(), logits.float(), **how))


def test_mixed_types_are_worked_in_the_wider():
    x, logits = torch.ones(2, 3, dtype=torch.float16), torch.randn(2, 4, dtype=torch.float64)
    assert last_layer_score(x, logits).dtype == torch.float64


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("classes", [4, 50])
def test_blocks_of_rows_change_no_score(classes, target, monkeypatch):
    x, logits, _ = drawn(101, classes, 101, torch.float32)
    how = {"target": target, "temperature": 2.0}
    whole = last_layer_score(x, logits, **how)
    monkeypatch.setattr(plain, "BLOCK_ENTRIES", {"cpu": 7 * classes})
    torch.testing.assert_close(last_layer_score(x, logits, **how), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("classes", [5, 60])
def test_any_layout_and_no_argument_is_written_to(classes):
    x, logits, _ = drawn(8, classes, 8, torch.float32)
    expected = last_layer_score(x, logits)
    kept = logits.clone()
    strided = [torch.stack([t, t], dim=2)[:, :, 0] for t in (x, logits)]
    transposed = [t.t().contiguous().t() for t in (x, logits)]
    broadcast = last_layer_score(x[:1].expand(8, -1), logits[:1].expand(8, -1))
    torch.testing.assert_close(last_layer_score(*strided), expected)
    torch.testing.assert_close(last_layer_score(*transposed), expected)
    torch.testing.assert_close(broadcast, expected[:1].expand(8))
    assert torch.equal(logits, kept)


def test_works_on_inputs_that_require_a_gradient_and_gives_none():
    x, logits, _ = drawn(5, 7, 5)
    score = last_layer_score(x.requires_grad_(), logits.requires_grad_())
    assert not score.requires_grad
    with torch.inference_mode():
        assert torch.equal(last_layer_score(x, logits), score)


@pytest.mark.parametrize("target", TARGETS)
def test_an_empty_batch_has_no_scores(target):
    score = last_layer_score(torch.zeros(0, 3), torch.zeros(0, 4), target=target)
    assert score.shape == (0,)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("p", [0.5, 1.0, 3.0, math.inf])
def test_the_form_for_graphs_is_the_same(p, target, monkeypatch):
    x, weight, bias = drawn(5, 7, 4, torch.float32)
    how = {"p": p, "temperature": 2.0, "target": target}
    expected = last_layer_score(x, linear(x, weight, bias), **how)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    found = last_layer_score(x, linear(x, weight, bias), **how)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=0)


def test_parts_multiply_to_the_score():
    x, weight, bias = drawn(5, 7, 4)
    logits = linear(x, weight, bias)
    u, v = feature_norm(x, p=3), deviation_norm(logits, p=3, temperature=2)
    score = last_layer_score(x, logits, p=3, temperature=2)
    torch.testing.assert_close(score, u * v / (4 * 2), rtol=1e-14, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_of_features_that_is_not_finite_is_named(bad):
    x = torch.ones(9, 3)
    x[7, 1] = bad
    with pytest.raises(InvalidArgument, match=r"finite features and logits, got .* in row 7"):
        last_layer_score(x, torch.zeros(9, 4) + torch.arange(4))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("classes", [4, 50])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_of_logits_that_is_not_finite_is_named(bad, classes, target):
    logits = torch.zeros(9, classes) + torch.arange(classes)
    logits[3, 2] = bad
    with pytest.raises(InvalidArgument, match="got a score of nan in row 3"):
        last_layer_score(torch.ones(9, 3), logits, target=target)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"temperature": 0.0}, "temperature > 0, got 0.0"),
        ({"temperature": math.inf}, "temperature > 0, got inf"),
        ({"p": 0.0}, "p > 0, got p = 0.0"),
        ({"p": math.nan}, "p > 0, got p = nan"),
        ({"target": "soft"}, "target uniform or one-hot, got 'soft'"),
    ],
)
def test_bad_settings_are_named(how, message):
    with pytest.raises(InvalidArgument, match=message):
        last_layer_score(torch.zeros(2, 3), torch.zeros(2, 4), **how)


@pytest.mark.parametrize(
    ("features", "logits", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 3), r"got \[2, 3\] and \[4, 3\]"),
        (torch.zeros(2, 3, 1), torch.zeros(2, 3), r"got \[2, 3, 1\] and \[2, 3\]"),
        (torch.zeros(2, 3), torch.zeros(2, 0), r"logits \[batch, classes\], got .*\[2, 0\]"),
        (torch.zeros(2, 0), torch.zeros(2, 3), r"features \[batch, in_features\], got .*\[2, 0\]"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3), r"features .*, got torch.int32 \[2, 3\]"),
    ],
)
def test_bad_shapes_and_types_are_shown(features, logits, message):
    with pytest.raises(InvalidArgument, match=message):
        last_layer_score(features, logits)


def test_without_settings_it_is_the_equation_of_the_paper():
    x, weight, bias = drawn(5, 7, 4)
    f = x @ weight.T + bias
    u, v = x.abs().sum(dim=1), (1 - 4 * f.softmax(dim=1)).abs().sum(dim=1)
    torch.testing.assert_close(feature_norm(x), u)
    torch.testing.assert_close(deviation_norm(f), v)
    torch.testing.assert_close(last_layer_score(x, f), u * v / 4)
