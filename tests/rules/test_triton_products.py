"""The kernel of product norms, interpreted on the CPU, against the products' plain tiles."""

from functools import cache

import pytest
import torch
from helpers.interpreted import failures
from helpers.without_a_device import OnCuda, note_launches
from torch._subclasses.fake_tensor import FakeTensorMode

from gradscore.errors import GradScoreWarning
from gradscore.rules import cuda_gram, cuda_products
from gradscore.rules.linear import linear_weight_norms
from gradscore.rules.product_norms import FORMS, find_norms
from gradscore.rules.products import Product, Sizes

pytest.importorskip("triton", reason="triton is not installed")

CASES = """
import math, sys, warnings
warnings.simplefilter("error")
# An older interpreter's way to read how many positions there are.
warnings.filterwarnings("ignore", "Conversion of an array", DeprecationWarning)
import torch
from torch.nn import functional as F
from gradscore.rules import cuda_gram, cuda_products
from gradscore.rules.products import Product
from gradscore.rules.rule import reduce_tiles
from gradscore.rules.windows import Geometry, window_product

EVERY = (1.0, 2.0, math.inf)

def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)

def framed(x):
    # NaN lies behind each axis, which no kernel must read.
    frame = torch.full([size + 3 for size in x.shape], math.nan, dtype=x.dtype)
    return frame[tuple(slice(0, size) for size in x.shape)].copy_(x)

def linear(samples, positions, channels, columns, dtype=torch.float32):
    g, x = (draw(samples, positions, size, seed=size) for size in (channels, columns))
    return Product(*(framed(t.to(dtype)).transpose(1, 2) for t in (g, x)))

def plain(product, orders):
    double = Product(product.left.double(), product.right.double())
    return reduce_tiles(double.tiles(), orders).float()

def agree(product, orders=EVERY, rtol=2e-6):
    found = cuda_products.product_norms(product, orders)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(product, orders), rtol=rtol, atol=0, equal_nan=True)

def agree_by_gram(product, rtol=2e-6):
    # Samples that keep their digits are not multiplied out, others are as ever.
    answered = []
    direct = cuda_products.product_norms
    cuda_products.product_norms = lambda *args, done: answered.append(done) or direct(*args, done)
    try:
        found = cuda_gram.gram_norms(product, (2.0, 2.0))
    finally:
        cuda_products.product_norms = direct
    expected = plain(product, (2.0,)).expand(-1, 2)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0, equal_nan=True)
    return answered[0]

def widened(dot):
    # The interpreter keeps bfloat16 as integers, and would multiply those.
    from triton.runtime.interpreter import TensorHandle, tl

    def wide(x):
        if x.dtype != tl.bfloat16:
            return x
        bits = x.data.astype("uint32") << 16
        return TensorHandle(bits.view("float32"), tl.float32)

    return lambda self, a, b, *rest: dot(self, wide(a), wide(b), *rest)

def convolution(shape, size, k=1, samples=3, transposed=False, dtype=torch.float32, **how):
    dims = len(size)
    names = ("stride", "padding", "dilation")
    geometry = Geometry(
        torch.Size(shape), *((how.get(name, int(name != "padding")),) * dims for name in names),
        transposed=transposed,
    )
    name = ("conv1d", "conv2d", "conv3d")[dims - 1]
    weight, channels = draw(*shape), shape[0] if transposed else shape[1]
    x = draw(samples * k, channels, *size)
    convolve = getattr(F, name.replace("conv", "conv_transpose") if transposed else name)
    g = torch.randn_like(convolve(x, weight, **how))
    return window_product(framed(x.to(dtype)), framed(g.to(dtype)), geometry, samples)
"""

CHECKS = {
    "one of each": "agree(linear(1, 1, 1, 1))",
    "one position": "agree(linear(3, 1, 5, 7))",
    "odd sizes in several tiles": "agree(linear(2, 37, 81, 130))",
    "more than one step of positions": "agree(linear(2, 65, 17, 16))",
    "powers of 2": "agree(linear(2, 64, 64, 64))",
    "one order each": "[agree(linear(2, 5, 6, 7), (p,)) for p in EVERY]",
    "orders in any order": "agree(linear(2, 5, 6, 7), (math.inf, 1.0, 2.0, 1.0))",
    "float16": "agree(linear(2, 37, 130, 40, torch.float16))",
    "bfloat16": "agree(linear(2, 37, 40, 130, torch.bfloat16))",
    "channels last": """
x, g = framed(draw(2, 7, 5, 6)), framed(draw(2, 9, 5, 6))
layout = torch.channels_last
agree(Product(g.to(memory_format=layout), x.to(memory_format=layout)))
agree(Product(g.to(memory_format=layout), x))
""",
    "batch in another axis": """
x, g = framed(draw(11, 3, 20)), framed(draw(11, 3, 18))
agree(Product(g.permute(1, 2, 0), x.permute(1, 2, 0)))
""",
    "broadcast": "agree(Product(draw(2, 6, 1).expand(2, 6, 9), draw(2, 5, 9)))",
    "convolutions": """
agree(convolution((10, 4, 3), (17,), stride=2, padding=1))
agree(convolution((18, 5, 3, 3), (9, 10), padding=1))
agree(convolution((18, 3, 5, 4), (17, 12), stride=2, padding=2, dilation=2, k=2))
agree(convolution((6, 20, 1, 1), (5, 7), stride=2))
agree(convolution((6, 3, 4, 4), (13, 12), stride=4))
agree(convolution((5, 2, 3, 2, 2), (5, 6, 4), padding=1))
agree(convolution((5, 6, 3, 3), (4, 5), transposed=True, stride=2, padding=1))
agree(convolution((18, 5, 3, 3), (9, 10), padding=1, dtype=torch.bfloat16))
""",
    "tiny and huge": """
for size in (1e-25, 1e25):
    product = linear(2, 9, 20, 30)
    agree(Product(product.left * size, product.right))
zero = linear(2, 9, 20, 30)
zero.left[0] = 0
agree(zero)
""",
    "not finite": """
warnings.simplefilter("ignore")
for bad in (math.nan, math.inf, -math.inf):
    product = linear(3, 9, 70, 30)
    product.left[1, -1, -1] = bad
    found = cuda_products.product_norms(product, EVERY)
    assert not found[1].isfinite().any(), found
    torch.testing.assert_close(found[::2], plain(product, EVERY)[::2], rtol=2e-6, atol=0)
""",
    "gram matrices": """
for positions in (1, 5, 70, 129, 200, 260):
    # One block of positions, two, three, four, five.
    assert agree_by_gram(linear(2, positions, 33, 40)).all() == (positions < 100), positions
assert agree_by_gram(linear(2, 37, 40, 33, torch.bfloat16)).all()
assert agree_by_gram(linear(2, 37, 40, 33, torch.float16)).all()
assert agree_by_gram(convolution((10, 4, 3, 2), (5, 6), padding=1, k=2)).all()
""",
    "gram matrices of many positions": """
cuda_gram.MOST_CANCELLATION = 1000.0
for positions in (129, 200, 260):
    assert agree_by_gram(linear(1, positions, 33, 40)).all()
cuda_gram.MOST_CANCELLATION = 100.0
""",
    "samples that are answered": """
product, done = linear(3, 9, 70, 30), torch.tensor([True, False, True])
found = cuda_products.product_norms(product, EVERY, done)
assert not found[::2].any()
assert torch.equal(found[1:2], cuda_products.product_norms(product, EVERY)[1:2])
""",
    "gram matrices that lose digits": """
product = linear(5, 9, 20, 30)
g, x = product.left.clone(), product.right.clone()
g[1] = (g[1] - g[1].mean(1, keepdim=True)) * 1e-3
x[1] = x[1, :, :1] + 1e-3 * x[1]
g[2] *= 1e-20
g[3] = 0
answered = agree_by_gram(Product(g, x))
assert answered.tolist() == [True, False, False, False, True]
tiny = linear(2, 9, 20, 30)
assert not agree_by_gram(Product(tiny.left * 1e-10, tiny.right * 1e-10)).any()
warnings.simplefilter("ignore")
assert not agree_by_gram(Product(tiny.left * 1e12, tiny.right * 1e12)).any()
g[0, 1, 2] = math.nan
found = cuda_gram.gram_norms(Product(g, x), (2.0,))
assert found[0].isnan().all() and found[1:].isfinite().all()
""",
    "the same digits again": """
product = linear(4, 50, 70, 90)
first, again = (cuda_products.product_norms(product, EVERY) for _ in range(2))
alone = torch.cat([cuda_products.product_norms(product[i : i + 1], EVERY) for i in range(4)])
assert torch.equal(first, again) and torch.equal(first, alone)
""",
}

WRONG = """
right, cuda_products.KINDS = cuda_products.KINDS, {p: 0 for p in EVERY}
try:
    agree(linear(2, 5, 6, 7))
finally:
    cuda_products.KINDS = right
"""
"""A check that must fail: the kernel computes the norm of order 1 whatever is asked."""


INTERPRETED = {
    "not loaded": """
from gradscore.rules.linear import linear_weight_norms
linear_weight_norms(draw(2, 5, 6), draw(2, 5, 7), (1.0,))
assert "triton" not in sys.modules
""",
    "patched": """
from triton.runtime.interpreter import InterpreterBuilder
InterpreterBuilder.create_dot = widened(InterpreterBuilder.create_dot)
""",
    **CHECKS,
    "wrong": WRONG,
}


@pytest.fixture(scope="module")
def interpreted():
    return failures(CASES, INTERPRETED, TRITON_INTERPRET="1")


@pytest.mark.parametrize("name", CHECKS)
def test_the_interpreted_kernel_equals_tiles(interpreted, name):
    assert name not in interpreted, interpreted[name]


def test_a_wrong_kernel_would_be_found(interpreted):
    assert "AssertionError" in interpreted["wrong"]


def test_no_triton_is_loaded_on_a_cpu(interpreted):
    assert "not loaded" not in interpreted, interpreted["not loaded"]


@pytest.fixture
def launcher(monkeypatch):
    """Return the module that launches the kernel; what it found out about devices is forgotten."""
    monkeypatch.setattr(cuda_products, "_runs_on", cache(cuda_products._runs_on.__wrapped__))
    monkeypatch.setattr(cuda_products, "_launch_one_entry", lambda device, dtype: None)
    return cuda_products


SIZES = Sizes(samples=8, channels=64, columns=576, positions=50)


@pytest.mark.parametrize(
    ("orders", "dtype", "served"),
    [
        ((1.0,), torch.float32, True),
        ((2.0,), torch.bfloat16, True),
        ((float("inf"), 1.0), torch.float16, True),
        ((0.5,), torch.float32, False),
        ((1.0, 3.0), torch.float32, False),
        ((1.0,), torch.float64, False),
    ],
    ids=str,
)
@pytest.mark.usefixtures("launcher")
def test_the_kernel_serves_three_orders_up_to_float32_on_cuda_alone(orders, dtype, served):
    x = torch.ones(2, 3, dtype=dtype)
    there = x.as_subclass(OnCuda)
    form = find_norms(SIZES, orders, there, there)
    assert form is (cuda_products.product_norms if served else None)
    assert find_norms(SIZES, orders, x, x) is not cuda_products.product_norms
    double = x.double().as_subclass(OnCuda)
    assert find_norms(SIZES, orders, there, double) is find_norms(SIZES, orders, double, there)
    assert find_norms(SIZES, orders, double, there) is None
    assert find_norms(SIZES._replace(columns=0), orders, there, there) is None


def test_tiles_serve_where_the_launcher_cannot_be_built_and_it_is_told_once_a_type(
    launcher, monkeypatch
):
    def no_compiler(device, dtype):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(launcher, "_launch_one_entry", no_compiler)
    x, g = torch.randn(2, 5, 6), torch.randn(2, 5, 7)
    there = x.as_subclass(OnCuda), g.as_subclass(OnCuda)
    with pytest.warns(GradScoreWarning, match="compiler. Gradient norms are computed by") as told:
        found = [linear_weight_norms(*there, (1.0,)) for _ in range(2)]
    assert len(told) == 1
    expected = linear_weight_norms(x, g, (1.0,))
    for norms in found:
        torch.testing.assert_close(norms.as_subclass(torch.Tensor), expected)


def test_memory_that_ends_is_no_missing_compiler(launcher, monkeypatch):
    def full(device, dtype):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(launcher, "_launch_one_entry", full)
    there = torch.ones(2, 3).as_subclass(OnCuda)
    with pytest.raises(torch.OutOfMemoryError):
        find_norms(SIZES, (1.0,), there, there)


def test_the_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    from gradscore.rules import triton_products

    seen = note_launches(monkeypatch, triton_products, "product_norms_kernel")
    with FakeTensorMode():
        x, g = torch.ones(2, 70, 9, device="cuda:1"), torch.ones(2, 30, 9, device="cuda:1")
        found = cuda_products.product_norms(Product(g, x), (1.0, 2.0))
    assert found.shape == (2, 2)
    # Two samples, each in two tiles of columns.
    assert seen == [((4,), [torch.device("cuda:1")])]


def test_a_line_of_the_table_is_all_that_puts_the_kernel_to_use(launcher, monkeypatch):
    from gradscore.rules import product_norms

    there = torch.ones(2, 3).as_subclass(OnCuda)
    assert find_norms(SIZES, (1.0,), there, there) is launcher.product_norms
    others = tuple(line for line in FORMS if line[1] is not launcher.product_norms)
    assert len(others) == len(FORMS) - 1
    monkeypatch.setattr(product_norms, "FORMS", others)
    assert find_norms(SIZES, (1.0,), there, there) is None


@pytest.mark.parametrize(
    ("orders", "positions", "dtype", "served"),
    [
        ((2.0,), 49, torch.float32, True),
        ((2.0, 2.0), 49, torch.float16, True),
        ((2.0,), 400, torch.float32, False),
        ((1.0, 2.0), 49, torch.float32, False),
        ((2.0,), 49, torch.float64, False),
    ],
    ids=str,
)
@pytest.mark.usefixtures("launcher")
def test_gram_matrices_serve_order_2_on_cuda_where_positions_are_few(
    orders, positions, dtype, served
):
    sizes = Sizes(samples=8, channels=512, columns=4608, positions=positions)
    there = torch.ones(2, 3, dtype=dtype).as_subclass(OnCuda)
    assert (find_norms(sizes, orders, there, there) is cuda_gram.gram_norms) == served


@pytest.mark.parametrize(
    ("sizes", "strides", "joined"),
    [
        ((2, 3, 4), [(12, 4, 1), (24, 8, 2)], ((24,), (1,), (2,))),
        ((2, 3, 4), [(12, 4, 1), (1, 2, 6)], ((2, 3, 4), (12, 4, 1), (1, 2, 6))),
        ((2, 3), [(3, 1), (0, 0)], ((6,), (1,), (0,))),
        ((1, 5, 1), [(9, 7, 3)], ((5,), (7,))),
        ((1, 1), [(9, 7)], ((1,), (0,))),
        ((), [(), ()], ((1,), (0,), (0,))),
    ],
)
def test_axes_are_joined_where_every_tensor_steps_over_them_evenly(sizes, strides, joined):
    assert cuda_products.joined(sizes, *strides) == joined


@pytest.mark.cuda
def test_the_compiled_kernel_equals_tiles():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_device = (
        "torch.set_default_device('cuda')\n"
        "torch.Generator = lambda make=torch.Generator: make('cuda')\n"
        "agree.__defaults__ = EVERY, 2e-5\n"
    )
    assert failures(CASES + on_device, CHECKS, TRITON_INTERPRET="0") == {}
