"""The forms of per-sample gradient norms against plain autograd, and what they hold in memory."""

import math

import pytest
import torch
from helpers.by_autograd import sample_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gradscore.rules import convolution_tiles, normalization, rule
from gradscore.rules.convolution import sizes
from gradscore.rules.convolution_tiles import Geometry, conv_tiles, few_positions, in_tile_order
from gradscore.rules.linear import linear_weight_norms
from gradscore.rules.normalization import (
    Standardisation,
    batch_norm_gradients,
    scale_and_shift_gradients,
)

ORDERS = (1.0, 2.0, math.inf, 0.5, 3.0)


def naive_norms(gradients, orders=ORDERS):
    """Return norms by their definition, shape ``[n, len(orders)]``."""
    flat = gradients.flatten(1).double().abs()
    by_order = [flat.amax(1) if p == math.inf else flat.pow(p).sum(1).pow(1 / p) for p in orders]
    return torch.stack(by_order, dim=1)


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    pair = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    kernel, dilation, padding, stride = pair(1, 3), pair(1, 2), pair(0, 2), pair(1, 3)
    if draw(st.booleans()):  # as in a patch embedding
        dilation, padding, stride = (1,) * dims, (0,) * dims, kernel
    extra = draw(st.integers(0, 4))
    size = [d * (k - 1) + 1 + extra for d, k in zip(dilation, kernel, strict=True)]
    return {
        "shape": (groups * draw(st.integers(1, 3)), draw(st.integers(1, 6)), *kernel),
        "size": size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "samples": draw(st.integers(1, 4)),
        "k": draw(st.sampled_from([1, 1, 2])),
        "tile": draw(st.sampled_from([1, 40, 1 << 19])),
    }


@settings(max_examples=150, deadline=None)
@given(convolutions())
def test_convolutions_equal_autograd(case):
    torch.manual_seed(0)
    weight = torch.randn(case["shape"], dtype=torch.float64)
    rows = case["samples"] * case["k"]
    x = torch.randn(rows, case["shape"][1] * case["groups"], *case["size"]).double()
    how = {name: case[name] for name in ("stride", "padding", "dilation", "groups")}
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(case["size"]) - 1]
    g = torch.randn_like(convolve(x, weight, **how))
    expected = sample_gradients(lambda a, w: convolve(a, w, **how), weight, x, g, case["samples"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rule.TILE_ELEMENTS, "cpu", case["tile"])
        patch.setattr(rule, "LEAST_BAND", 1)
        geometry = Geometry(weight.shape, **how)
        norms = rule.reduce_tiles(conv_tiles(x, g, geometry, case["samples"]), ORDERS)
    torch.testing.assert_close(norms, naive_norms(expected), rtol=1e-9, atol=1e-12)


FORMS = [
    ((24, 16, 1, 1), 9, 2, 0, "pointwise_tiles"),
    ((24, 3, 4, 4), 17, 4, 0, "patch_tiles"),
    ((64, 16, 3, 3), 9, 1, 1, "kernel_row_tiles"),
    ((64, 16, 3, 3), 9, 2, 1, "kernel_row_tiles"),
    ((64, 16, 5, 2), 11, 3, 2, "kernel_row_tiles"),
    ((64, 16, 3, 3), 22, 1, 1, "folded_tiles"),
    ((24, 3, 3, 3), 19, 1, 1, "kernel_row_tiles"),
    ((24, 3, 3, 3), 40, 1, 1, "folded_tiles"),
    ((24, 16, 3, 3), 20, 1, 1, "folded_tiles"),
    ((64, 16, 1, 1), 9, 1, 1, "kernel_row_tiles"),
]


@pytest.fixture(autouse=True)
def on_avx512(monkeypatch):
    """Let every processor choose as one with vectors of 512 bits does."""
    few = convolution_tiles.FEW_POSITIONS_AVX512
    monkeypatch.setattr(convolution_tiles, "few_positions", lambda: few)


@pytest.mark.parametrize(
    ("capability", "positions"), [("AVX512", 384), ("AVX2", 1024), ("DEFAULT", 1024)]
)
def test_products_by_rows_end_earlier_where_the_library_has_wide_vectors(
    capability, positions, monkeypatch
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert few_positions.__wrapped__() == positions


TYPES = [(torch.float32, 1e-5), (torch.float64, 1e-9), (torch.bfloat16, 2e-2)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "rtol"), TYPES, ids=lambda it: str(it))
@pytest.mark.parametrize("form", ["kernel_row_tiles", "folded_tiles"])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), ((3, 2), (0, 2), (2, 1))])
def test_both_ways_of_a_mid_size_convolution_equal_autograd(
    stride, padding, dilation, form, dtype, rtol, layout
):
    torch.manual_seed(0)
    values = {"stride": stride, "padding": padding, "dilation": dilation}
    how = {name: sizes(value, 2) for name, value in values.items()}
    weight = torch.randn(64, 16, 3, 3, dtype=dtype)
    x = torch.randn(3, 16, 9, 10, dtype=dtype).to(memory_format=layout)
    g = torch.randn_like(F.conv2d(x, weight, **how))
    samples = {"samples": 3} if form == "folded_tiles" else {}
    tiles = getattr(convolution_tiles, form)(x, g, Geometry(weight.shape, **how), **samples)
    norms = rule.reduce_tiles(tiles, ORDERS)
    expected = sample_gradients(
        lambda a, w: F.conv2d(a, w, **how), weight.double(), x.double(), g.double(), 3
    )
    torch.testing.assert_close(norms.double(), naive_norms(expected), rtol=rtol, atol=0)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("tile", [1, 3000, 1 << 19])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 3, 1), ((3, 2), 1, 2)])
def test_first_layers_by_unfolded_inputs_equal_autograd(
    stride, padding, dilation, tile, k, monkeypatch
):
    monkeypatch.setitem(rule.TILE_ELEMENTS, "cpu", tile)
    monkeypatch.setattr(rule, "LEAST_BAND", 4)
    torch.manual_seed(0)
    how = {"stride": sizes(stride, 2), "padding": (padding,) * 2, "dilation": (dilation,) * 2}
    weight, x = torch.randn(10, 3, 5, 4).double(), torch.randn(4 * k, 3, 17, 16).double()
    g = torch.randn_like(F.conv2d(x, weight, **how))
    tiles = convolution_tiles.unfolded_tiles(x, g, Geometry(weight.shape, **how), 4)
    expected = sample_gradients(lambda a, w: F.conv2d(a, w, **how), weight, x, g, 4)
    norms = rule.reduce_tiles(tiles, ORDERS)
    torch.testing.assert_close(norms, naive_norms(expected), rtol=1e-9, atol=1e-12)


FIRST_LAYERS = [
    (F.conv1d, (24, 1, 80), (400,), {"stride": (4,), "padding": (0,)}),
    (F.conv2d, (24, 3, 7, 7), (32, 32), {"stride": (2, 2), "padding": (3, 3)}),
    (F.conv3d, (24, 3, 3, 3, 3), (8, 8, 8), {"stride": (1, 2, 2), "padding": (1, 1, 1)}),
    (F.conv_transpose2d, (24, 3, 4, 4), (8, 8), {"stride": (2, 2), "padding": (1, 1)}),
]
"""The first layers of sound, images and video, and a last one that makes images."""


@pytest.mark.parametrize(("function", "shape", "size", "how"), FIRST_LAYERS)
def test_a_layer_of_few_channels_on_a_gpu_takes_all_images_at_once(
    function, shape, size, how, monkeypatch
):
    monkeypatch.setitem(rule.TILE_ELEMENTS, "meta", rule.TILE_ELEMENTS["cuda"])
    transposed = function is F.conv_transpose2d
    dilation = (1,) * len(size)
    geometry = Geometry(torch.Size(shape), **how, dilation=dilation, transposed=transposed)
    x = torch.empty(64, shape[0 if transposed else 1], *size, device="meta")
    g = function(x, torch.empty(shape, device="meta"), **how)
    (tile,) = conv_tiles(x, g, geometry, 64)
    assert tile.samples == slice(0, 64)
    assert tile.gradient.shape == (64, 1, 24, math.prod(shape[1:]))


@pytest.mark.parametrize(("function", "shape", "size", "how"), FIRST_LAYERS)
def test_unfolded_inputs_of_any_number_of_axes_give_the_gradients_of_autograd(
    function, shape, size, how
):
    torch.manual_seed(0)
    transposed = function is F.conv_transpose2d
    dilation = (1,) * len(size)
    geometry = Geometry(torch.Size(shape), **how, dilation=dilation, transposed=transposed)
    x, weight = torch.randn(2, shape[0 if transposed else 1], *size).double(), torch.randn(shape)
    g = torch.randn_like(function(x, weight.double(), **how))
    (tile,) = convolution_tiles.unfolded_tiles(x, g, geometry, 2)
    expected = sample_gradients(lambda a, w: function(a, w, **how), weight.double(), x, g, 2)
    torch.testing.assert_close(tile.gradient.reshape(expected.shape), expected)


@pytest.mark.parametrize(("shape", "size", "stride", "padding", "form"), FORMS)
def test_the_form_is_chosen_by_shape_and_keeps_its_digits(
    shape, size, stride, padding, form, monkeypatch
):
    torch.manual_seed(0)
    weight, x = torch.randn(shape), torch.randn(5, shape[1], size, size)
    g = torch.randn_like(F.conv2d(x, weight, stride=stride, padding=padding))
    taken, plain = [], getattr(convolution_tiles, form)
    monkeypatch.setattr(convolution_tiles, form, lambda *args: taken.append(form) or plain(*args))
    geometry = Geometry(weight.shape, (stride,) * 2, (padding,) * 2, (1, 1))
    norms = rule.reduce_tiles(conv_tiles(x, g, geometry, 5), (1.0, 2.0, 3.0))
    assert taken == [form]
    expected = sample_gradients(
        lambda a, w: F.conv2d(a, w, stride=stride, padding=padding),
        weight.double(), x.double(), g.double(), 5,
    )  # fmt: skip
    torch.testing.assert_close(norms.double(), naive_norms(expected, (1, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("shape", "size", "stride", "padding", "form"), FORMS)
@pytest.mark.parametrize("budget", [500, 5000])
def test_tiles_are_small_and_hold_every_entry_once(
    shape, size, stride, padding, form, budget, monkeypatch
):
    monkeypatch.setitem(rule.TILE_ELEMENTS, "cpu", budget)
    monkeypatch.setattr(rule, "LEAST_BAND", 16)
    x, weight = torch.randn(7, shape[1], size, size), torch.randn(shape)
    g = torch.randn_like(F.conv2d(x, weight, stride=stride, padding=padding))
    geometry = Geometry(weight.shape, (stride,) * 2, (padding,) * 2, (1, 1))
    seen = torch.zeros(7, shape[0])
    smallest = weight.numel() if form == "folded_tiles" else 16 * weight[0].numel()
    threads = torch.get_num_threads()
    for tile in conv_tiles(x, g, geometry, 7):
        seen[tile.samples, tile.channels] += 1
        assert tile.gradient.numel() <= threads * max(budget, smallest)
        assert tile.gradient[0, :, 0].numel() == weight[0].numel()
    assert (seen == 1).all()


@pytest.mark.parametrize(
    ("gradients", "tiling"),
    [
        ((9, 768, 192), (6, 768)),  # 3 a thread fit: 6 and 3, though 5 and 4 would be more even
        ((16, 256, 2304), (2, 256)),  # more than a tile: still a sample a thread, and whole
        ((16, 2048, 1024), (2, 512)),  # in bands of equal height
        ((1, 10, 10), (1, 10)),
    ],
)
def test_a_tile_holds_a_multiple_of_the_threads(gradients, tiling, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert rule.Tiling.of(torch.empty(0), *gradients) == tiling


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6),
    st.sampled_from([1, 7, 1 << 19]),
)  # fmt: skip
def test_products_equal_autograd_at_one_and_at_many_positions(n, positions, inner, outer, tile):
    torch.manual_seed(0)
    x = torch.randn(n, positions, inner, dtype=torch.float64)
    g = torch.randn(n, positions, outer, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rule.TILE_ELEMENTS, "cpu", tile)
        patch.setattr(rule, "LEAST_BAND", 1)
        norms = linear_weight_norms(x, g, ORDERS)
    expected = naive_norms(torch.einsum("npo,npi->noi", g, x))
    torch.testing.assert_close(norms, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("positions", [(), (6,), (3, 4)])
def test_scale_and_shift_of_batch_norm_equal_autograd(k, positions):
    torch.manual_seed(0)
    x, g = (torch.randn(4 * k, 5, *positions, dtype=torch.float64) for _ in range(2))
    mean, var = torch.randn(5).double(), torch.rand(5).double() + 0.1
    scale, shift = batch_norm_gradients(x, g, mean, var, 1e-3, 4)
    plain = lambda a, w, b: F.batch_norm(a, mean, var, w, b, False, 0.1, 1e-3)  # noqa: E731
    ones = torch.ones(5).double()
    for gradients, function in (
        (scale, lambda a, w: plain(a, w, ones)),
        (shift, lambda a, b: plain(a, ones, b)),
    ):
        expected = sample_gradients(function, ones, x, g, 4)
        torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)


class _AsOnCuda(TorchDispatchMode):
    """Run the backward of a batch norm as CUDA does: by what a forward saved, which must be there.

    A CPU reads the running statistics instead, and takes None for all that CUDA insists on.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.native_batch_norm_backward.default:
            return func(*args, **(kwargs or {}))
        g, x, weight, _, _, mean, invstd, train, _, mask = args
        assert (train, mask) == (False, [False, True, True])
        assert weight.dtype == mean.dtype == invstd.dtype
        centred = x - mean.view(1, -1, 1)
        self.plain = func(*args[:2], None, *args[3:5], None, None, *args[7:])[1:]
        return None, (g * centred).sum((0, 2)) * invstd, g.sum((0, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_backward_of_batch_norm_is_given_all_that_cuda_reads(monkeypatch, dtype):
    torch.manual_seed(0)
    x, g = (torch.randn(6, 5, 7).to(dtype) for _ in range(2))
    stats = torch.randn(5), torch.rand(5) + 0.1
    monkeypatch.setattr(normalization, "reads_saved", lambda x: True)
    with _AsOnCuda() as cuda:
        there = batch_norm_gradients(x, g, *stats, 1e-3, 6)
    monkeypatch.undo()
    here = batch_norm_gradients(x, g, *stats, 1e-3, 6)
    for found, plain, saved in zip(here, cuda.plain, there, strict=True):
        assert torch.equal(found.flatten(), plain)
        torch.testing.assert_close(found.float(), saved.float(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("form", ["conv", "linear"])
def test_a_weight_without_entries_has_norms_of_zero(form):
    x, g = torch.randn(2, 0, 4), torch.randn(2, 3, 4)
    if form == "conv":
        geometry = Geometry(torch.Size((3, 0, 1)), (1,), (0,), (1,))
        found = rule.reduce_tiles(conv_tiles(x, g, geometry, 2), ORDERS)
    else:
        found = linear_weight_norms(x.transpose(1, 2), g.transpose(1, 2), ORDERS)
    assert torch.equal(found, torch.zeros(2, len(ORDERS)))


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "shape"),
    [
        ((3, 2), (1, 1), (1, 1), (2, 1, 2 * 3, 7 * 8)),  # a row more at either end
        ((3, 2), (2, 1), (1, 1), (2, 2, 2 * 3, 6 * 8)),
        ((2, 1), (3, 1), (1, 1), (2, 2, 3, 5 * 8)),  # the third remainder is never read
        ((3, 1), (2, 1), (2, 1), (2, 2, 3, 7 * 8)),
    ],
)
def test_shifted_inputs_take_no_more_than_is_read(kernel, stride, dilation, shape):
    geometry = Geometry(torch.Size((4, 3, *kernel)), stride, (0, 0), dilation)
    assert convolution_tiles._shifted(torch.randn(2, 3, 20, 9), geometry, 5, 8).shape == shape


def test_a_folded_convolution_computes_nothing_but_its_weight_gradient():
    class Masks(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.convolution_backward.default:
                seen.append(args[-1])
            return func(*args, **(kwargs or {}))

    seen = []
    geometry = Geometry(torch.Size((4, 1, 3)), (1,), (0,), (1,), groups=4)
    with Masks():
        convolution_tiles.folded_gradient(torch.randn(2, 4, 6), torch.randn(2, 4, 4), geometry, 2)
    assert seen == [[False, True, False]]


NORMALIZATIONS = [
    (lambda a, w=None, b=None: F.group_norm(a, 2, w, b), (1, 3), 4),
    (lambda a, w=None, b=None: F.layer_norm(a, (5,), w, b), (1, 2), 5),
]


@pytest.mark.parametrize("tile", [1, 1 << 19])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("normalize", "dims", "size"), NORMALIZATIONS)
def test_scale_and_shift_of_other_norms_equal_autograd(
    normalize, dims, size, k, tile, monkeypatch
):
    monkeypatch.setitem(rule.TILE_ELEMENTS, "cpu", tile)
    torch.manual_seed(0)
    x, g = (torch.randn(3 * k, 4, 5, dtype=torch.float64) for _ in range(2))
    scale, shift = scale_and_shift_gradients(x, g, normalize, dims, 3)
    ones = torch.ones(size).double()
    for gradients, function in (
        (scale, lambda a, w: normalize(a, w, ones)),
        (shift, lambda a, b: normalize(a, ones, b)),
    ):
        expected = sample_gradients(function, ones, x, g, 3)
        torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-12)


def standardised(weight):
    flat = weight.reshape(1, len(weight), -1)
    return F.batch_norm(flat, None, None, training=True, eps=1e-6).reshape_as(weight)


@pytest.mark.parametrize(("size", "stride"), [(7, 1), (20, 2), (40, 1)])
def test_standardised_weight_equals_autograd(size, stride):
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    made = standardised(weight)
    x = torch.randn(3, 4, size, size, dtype=torch.float64)
    g = torch.randn_like(F.conv2d(x, made.detach(), stride=stride))
    tiles = conv_tiles(x, g, Geometry(weight.shape, (stride,) * 2, (0, 0), (1, 1)), 3)
    pull_back = Standardisation.of(made).pull_back
    norms = rule.reduce_tiles(tiles, ORDERS, pull_back)
    expected = sample_gradients(
        lambda a, w: F.conv2d(a, standardised(w), stride=stride), weight, x, g, 3
    )
    torch.testing.assert_close(norms, naive_norms(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w * 2,
        lambda w: standardised(w) * 2,
        lambda w: standardised(w.transpose(0, 1)).transpose(0, 1),
        lambda w: F.batch_norm(w.reshape(2, 3, -1), None, None, training=True).reshape_as(w),
        lambda w: F.batch_norm(
            w.reshape(1, 6, -1), torch.zeros(6).double(), torch.ones(6).double()
        ).reshape_as(w),
    ],
)
def test_what_is_not_so_standardised_is_left_to_autograd(make):
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert Standardisation.of(make(weight)) is None


def test_tile_order_puts_rows_of_the_kernel_first():
    weight = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    assert in_tile_order(weight, 1).shape == (1, 2, 12)
    assert in_tile_order(weight, 2)[1, 0].tolist() == [2, 6, 10, 3, 7, 11]
