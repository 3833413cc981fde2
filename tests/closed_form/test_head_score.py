"""Scores from features and head must equal those from features and logits, in flat memory."""

import math

import pytest
import torch
from helpers.without_a_device import OnCuda
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import linear

import gradscore.closed_form
from gradscore.closed_form import _logits, head_score, last_layer_score
from gradscore.errors import InvalidArgument

SETTINGS = [
    {},
    {"p": 0.5, "temperature": 2.0},
    {"p": math.inf, "target": "one-hot"},
    {"p": 3.0, "temperature": 32.0},
]


def drawn(batch=9, in_features=6, classes=5, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    sizes = [(batch, in_features), (classes, in_features), (classes,)]
    return [torch.randn(size, generator=rng, dtype=torch.float64).to(dtype) for size in sizes]


@pytest.fixture(params=[768, 4], ids=["one-block", "blocks-of-four-rows"])
def _blocks(request, monkeypatch):
    monkeypatch.setitem(gradscore.closed_form.BLOCK_BYTES, "cpu", 1)
    monkeypatch.setattr(gradscore.closed_form, "BLOCK_ROWS", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("how", SETTINGS, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_score_from_logits(how, with_bias):
    x, weight, bias = drawn()
    bias = bias if with_bias else None
    logits = linear(x, weight, bias)
    expected = last_layer_score(x, logits, **how)
    torch.testing.assert_close(head_score(x, weight, bias, **how), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("device", "megabytes"), [("cpu", 32), ("cuda", 256)])
def test_a_block_of_logits_is_larger_where_launches_cost_more(device, megabytes):
    with FakeTensorMode():
        x, weight = torch.empty(10**6, 64, device=device), torch.empty(1000, 64, device=device)
        rows, logits = next(_logits(x, weight, None))
    assert logits.shape == (rows.stop - rows.start, 1000)
    assert rows == slice(0, megabytes * 2**20 // (1000 * 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_makes_its_logits_in_float32(dtype):
    x, weight, bias = drawn(dtype=dtype)
    score = head_score(x, weight, bias)
    assert score.dtype == torch.float32
    assert torch.equal(score, head_score(x.float(), weight.float(), bias.float()))


def test_an_empty_batch_has_no_scores():
    x, weight, bias = drawn()
    assert head_score(x[:0], weight, bias).shape == (0,)
    assert head_score(x[:0], weight).shape == (0,)


def test_parameters_of_a_module_are_taken_and_left():
    layer = torch.nn.Linear(6, 5)
    x = torch.randn(3, 6)
    score = head_score(x, layer.weight, layer.bias)
    assert not score.requires_grad
    torch.testing.assert_close(score, last_layer_score(x, layer(x)))
    assert layer.weight.grad is None


@pytest.mark.usefixtures("_blocks")
def test_a_row_that_is_not_finite_is_named_in_the_whole_batch():
    x, weight, bias = drawn()
    x[6, 2] = math.nan
    with pytest.raises(InvalidArgument, match=r"got a score of nan in row 6\."):
        head_score(x, weight, bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b: (x, w.t(), b), r"got torch.float64 \[9, 6\], torch.float64 \[6, 5\], "),
        (lambda x, w, b: (x, w, b[:4]), r"torch.float64 \[4\]"),
        (lambda x, w, b: (x, w.float(), b), r"of one type, got .*torch.float32 \[5, 6\]"),
        (lambda x, w, b: (x[0], w, b), r"Expected features \[batch, in_features\], got .*\[6\]"),
        (lambda x, w, b: (x, w[:0], b[:0]), r"\[0, 6\]"),
    ],
)
def test_parts_that_do_not_fit_are_shown(change, message):
    with pytest.raises(InvalidArgument, match=message):
        head_score(*change(*drawn()))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gpu_multiplies_a_head_of_half_precision_as_it_is(dtype, with_bias, monkeypatch):
    def product(x, w, *, out_dtype, out):
        assert x.dtype == w.dtype == dtype
        assert out_dtype == out.dtype == torch.float32
        seen.append(len(x))
        return plain(x.float(), w.float(), out=out)

    seen, plain = [], torch.mm
    monkeypatch.setattr(torch, "mm", product)
    x, weight, bias = drawn(dtype=dtype)
    bias = bias if with_bias else None
    found = head_score(x.as_subclass(OnCuda), weight, bias, backend="torch")
    assert seen == [9]
    logits = linear(x.float(), weight.float(), None if bias is None else bias.float())
    expected = last_layer_score(x.float(), logits)
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected, rtol=1e-5, atol=0)
