"""Products over positions as views, and their Frobenius norms by Gram matrices."""

import math

import pytest
import torch
from helpers.by_autograd import sample_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from gradscore.rules import convolution, cuda_products, gram, rule
from gradscore.rules.linear import linear_weight_norms
from gradscore.rules.product_norms import find_norms
from gradscore.rules.products import Product, Sizes
from gradscore.rules.rule import Call, reduce_tiles
from gradscore.rules.windows import Geometry, product_sizes, window_product

ORDERS = (1.0, 2.0, math.inf)


def draw(*shape, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype)


@st.composite
def convolutions(draw_from):
    dims = draw_from(st.integers(1, 3))
    pair = lambda low, high: tuple(draw_from(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    kernel, dilation, stride = pair(1, 3), pair(1, 2), pair(1, 3)
    extra = draw_from(st.integers(0, 3))
    return {
        "weight": (draw_from(st.integers(1, 4)), draw_from(st.integers(1, 4)), *kernel),
        "size": [d * (k - 1) + 1 + extra for d, k in zip(dilation, kernel, strict=True)],
        "how": {"stride": stride, "padding": pair(0, 1), "dilation": dilation},
        "samples": draw_from(st.integers(1, 3)),
        "k": draw_from(st.sampled_from([1, 1, 2])),
        "transposed": draw_from(st.booleans()),
    }


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_convolutions_are_products_over_the_places_of_their_kernel(case):
    how, samples, dims = case["how"], case["samples"], len(case["size"])
    weight, transposed = draw(*case["weight"]), case["transposed"]
    channels = weight.shape[0 if transposed else 1]
    x = draw(samples * case["k"], channels, *case["size"])
    name = f"conv_transpose{dims}d" if transposed else f"conv{dims}d"
    convolve = lambda a, w: getattr(F, name)(a, w, **how)  # noqa: E731
    try:
        y = convolve(x, weight)
    except RuntimeError:  # more padding than there is to take away
        return
    if not y.numel():
        return
    g = torch.randn_like(y)
    geometry = Geometry(weight.shape, **how, transposed=transposed)
    product = window_product(x, g, geometry, samples)
    assert product.sizes == product_sizes(x, g, geometry, samples)
    left, right = product.matrices()
    found = (left @ right.mT).reshape(samples, *weight.shape)
    torch.testing.assert_close(found, sample_gradients(convolve, weight, x, g, samples))


def test_places_that_only_a_larger_output_has_are_left_out():
    how = {"stride": 1, "dilation": 2, "output_padding": 1}
    x, weight = draw(2, 3, 5), draw(3, 4, 2)
    g = torch.randn_like(F.conv_transpose1d(x, weight, **how))
    geometry = Geometry(weight.shape, (1,), (0,), (2,), transposed=True, output_padding=(1,))
    left, right = window_product(x, g, geometry, 2).matrices()
    convolve = lambda a, w: F.conv_transpose1d(a, w, **how)  # noqa: E731
    expected = sample_gradients(convolve, weight, x, g, 2)
    torch.testing.assert_close((left @ right.mT).reshape(expected.shape), expected)


def test_windows_are_no_copies():
    x, g = torch.empty(2, 3, 20, 20, device="meta"), torch.empty(2, 5, 18, 18, device="meta")
    geometry = Geometry(torch.Size((5, 3, 3, 3)), (1, 1), (0, 0), (1, 1))
    product = window_product(x, g, geometry, 2)
    assert product.right.shape == (2, 3, 3, 3, 1, 18, 18)
    assert product.right.untyped_storage().nbytes() == x.numel() * 4


def weight_norms(function, x, weight, g, orders, **how):
    call = Call(function, {"input": x, "weight": weight, **how}, len(x))
    return convolution.weight_norms(call, "weight", g, orders)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["linear", "conv", "transposed"])
def test_order_2_of_few_positions_is_taken_from_gram_matrices(form, dtype, monkeypatch):
    taken = []
    monkeypatch.setattr(gram, "LEAST_WORK", 1)
    monkeypatch.setattr(
        gram, "_frobenius", lambda p, plain=gram._frobenius: taken.append(p.sizes) or plain(p)
    )
    if form == "linear":
        x, g = draw(3, 5, 20, dtype=dtype), draw(3, 5, 30, dtype=dtype)
        found = linear_weight_norms(x, g, (2.0,))
        plain = reduce_tiles(Product(g.double().mT, x.double().mT).tiles(), (2.0,))
        sizes = Sizes(3, 30, 20, 5)
    else:
        function = {"conv": F.conv2d, "transposed": F.conv_transpose2d}[form]
        x, weight = draw(3, 12, 4, 5, dtype=dtype), draw(12, 12, 3, 3, dtype=dtype)
        how = {"padding": 1, "stride": 2}
        g = torch.randn_like(function(x, weight, **how))
        found = weight_norms(function, x, weight, g, (2.0,), **how)
        x, weight, g = x.double(), weight.double(), g.double()
        plain = sample_gradients(lambda a, w: function(a, w, **how), weight, x, g, 3)
        plain = plain.flatten(1).norm(dim=1, keepdim=True)
        sizes = Sizes(3, 12, 108, 6 if form == "conv" else 20)
    served = sizes.saving >= gram.LEAST_SAVING
    assert served == (form != "transposed")
    assert taken == ([sizes] if served else [])
    assert found.dtype == dtype
    rtol = 1e-6 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(found.double(), plain, rtol=rtol, atol=0)


FEW = Sizes(samples=8, channels=512, columns=4608, positions=49)


@pytest.mark.parametrize(
    ("sizes", "orders", "dtype", "served"),
    [
        (FEW, (2.0,), torch.float32, True),
        (FEW, (2.0, 2.0), torch.float64, True),
        (FEW, (1.0, 2.0), torch.float32, False),
        (FEW, (1.0,), torch.float32, False),
        (FEW, (2.0,), torch.bfloat16, False),
        (FEW._replace(positions=400), (2.0,), torch.float32, False),
        (FEW._replace(columns=0), (2.0,), torch.float32, False),
        (
            FEW._replace(samples=1, channels=16, columns=16, positions=2),
            (2.0,),
            torch.float32,
            False,
        ),
    ],
    ids=str,
)
def test_gram_matrices_serve_order_2_where_they_cost_less(sizes, orders, dtype, served):
    x = torch.empty(1, dtype=dtype)
    assert (find_norms(sizes, orders, x, x) is gram.gram_norms) == served
    assert find_norms(sizes, orders, x.to("meta"), x.to("meta")) is None
    assert not cuda_products.serves(sizes, orders, x)


def cancelling(noise, positions=49, dtype=torch.float32):
    """Return a product whose positions share their inputs, and whose gradients add up to zero."""
    x = draw(4, 64, 1) + noise * draw(4, 64, positions)
    g = draw(4, 80, 1) * draw(4, 1, positions) + noise * draw(4, 80, positions, seed=1)
    g -= g.mean(2, keepdim=True)
    return Product(g.to(dtype), x.to(dtype))


@pytest.mark.parametrize("noise", [1.0, 0.5, 0.3, 0.1, 1e-2, 1e-3])
def test_sums_that_cancel_keep_their_digits(noise):
    product = cancelling(noise)
    double = Product(product.left.double(), product.right.double())
    exact = reduce_tiles(double.tiles(), (2.0,))
    found = gram.gram_norms(product, (2.0,))
    torch.testing.assert_close(found.double(), exact, rtol=4e-6, atol=0)
    if noise < 0.1:
        assert torch.equal(found, reduce_tiles(product.tiles(), (2.0,)))


def test_without_the_refusal_digits_would_be_lost(monkeypatch):
    monkeypatch.setattr(gram, "MOST_CANCELLATION", math.inf)
    product = cancelling(1e-3)
    exact = reduce_tiles(Product(product.left.double(), product.right.double()).tiles(), (2.0,))
    off = gram.gram_norms(product, (2.0,)).double() / exact - 1
    assert not (off.abs() < 1e-4).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e-16, 1e15, 1e22, 1e30])
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("sign", [lambda x: x, torch.abs], ids=["signed", "positive"])
def test_squares_that_leave_the_range_of_float32_are_multiplied_out(scale, both, sign):
    g, x = (sign(draw(3, size, 7, dtype=torch.float32)) for size in (40, 50))
    g, x = g * scale, (x / scale if both else x)
    # One position has all of the gradient, another all of the input.
    g[0, :, 1:], x[0, :, 0] = g[0, :, 1:] * 1e-7, x[0, :, 0] * 1e-7
    exact = reduce_tiles(Product(g.double(), x.double()).tiles(), (2.0,))
    found = gram.gram_norms(Product(g, x), (2.0, 2.0))
    torch.testing.assert_close(found.double(), exact.expand(3, 2), rtol=2e-6, atol=0)


def test_a_sum_that_leaves_the_range_of_float64_is_multiplied_out():
    product = Product(draw(3, 40, 7).abs() * 1e90, draw(3, 50, 7).abs() * 1e90)
    found = gram.gram_norms(product, (2.0,))
    assert found.isfinite().all()
    torch.testing.assert_close(found, reduce_tiles(product.tiles(), (2.0,)), rtol=1e-13, atol=0)


def test_samples_without_gradient_and_samples_that_are_not_finite_stay_so():
    g, x = draw(5, 40, 7, dtype=torch.float32), draw(5, 50, 7, dtype=torch.float32)
    g[1], x[2, 3, 4], g[3, 0, 0] = 0, math.nan, math.inf
    found, plain = (
        norms[:, 0]
        for norms in (
            gram.gram_norms(Product(g, x), (2.0,)),
            reduce_tiles(Product(g, x).tiles(), (2.0,)),
        )
    )
    assert found[1] == 0
    assert not found[2:4].isfinite().any()
    torch.testing.assert_close(found, plain, equal_nan=True)


@pytest.mark.parametrize("tile", [1, 5000, 1 << 19])
def test_gram_matrices_are_taken_of_some_samples_at_a_time(tile, monkeypatch):
    monkeypatch.setitem(rule.TILE_ELEMENTS, "cpu", tile)
    g, x = draw(7, 40, 6), draw(7, 50, 6)
    exact = reduce_tiles(Product(g, x).tiles(), (2.0,))
    torch.testing.assert_close(gram.gram_norms(Product(g, x), (2.0,)), exact)
