"""The Triton kernels, interpreted on the CPU, against the torch path."""

from functools import cache

import pytest
import torch
from helpers.interpreted import failures
from helpers.without_a_device import OnCuda, note_launches
from torch._subclasses.fake_tensor import FakeTensorMode

from gradscore.closed_form import cuda, last_layer_score
from gradscore.closed_form.cuda import use_triton
from gradscore.errors import GradScoreWarning

pytest.importorskip("triton", reason="triton is not installed")

CASES = """
import itertools, math, sys, warnings
warnings.simplefilter("error")
import torch
from torch.nn.functional import linear
from gradscore.closed_form import head_score, last_layer_score

def rows(shape, scale, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale

def framed(x):
    # NaN lies behind each axis, which no kernel must read.
    frame = torch.full([size + 3 for size in x.shape], math.nan, dtype=x.dtype)
    inside = frame[tuple(slice(0, size) for size in x.shape)]
    return inside.copy_(x)

def agree(found, expected, rtol, case):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0, msg=lambda m: f"{case}: {m}")

def from_logits(shape, dtype, orders, temperatures, scales=(0.01, 1.0, 20.0)):
    batch, in_features, classes = shape
    for target, scale in itertools.product(("uniform", "one-hot"), scales):
        x = framed(rows((batch, in_features), 1, 1).to(dtype))
        f = framed(rows((batch, classes), scale, 2).to(dtype))
        f[0, :2] = f[0, -2] = f[0].max()
        f[-1, -1] = -math.inf
        for p, temperature in itertools.product(orders, temperatures):
            how = {"p": p, "temperature": temperature, "target": target}
            expected = last_layer_score(x, f, **how, backend="torch")
            found = last_layer_score(x, f, **how, backend="triton")
            agree(found, expected, 2e-5, (shape, dtype, scale, how))

def from_head(shape, dtype, orders, temperatures, with_bias=True):
    batch, in_features, classes = shape
    x = framed(rows((batch, in_features), 1, 1).to(dtype))
    w = framed(rows((classes, in_features), 1, 2).to(dtype))
    b = framed(rows((classes,), 1, 3).to(dtype)) if with_bias else None
    for target, p, temperature in itertools.product(("uniform", "one-hot"), orders, temperatures):
        how = {"p": p, "temperature": temperature, "target": target}
        expected = head_score(x, w, b, **how, backend="torch")
        found = head_score(x, w, b, **how, backend="triton")
        agree(found, expected, 5e-5, (shape, how))
"""

ORDERS = "(0.5, 1.0, 2.0, 3.0, math.inf)"
CHECKS = {
    "small": f"from_logits((5, 7, 4), torch.float32, {ORDERS}, (1.0, 1024.0))",
    "two-classes": "from_logits((2, 3, 2), torch.float32, (1.0, 0.3), (0.5,))",
    "several-tiles": "from_logits((2, 5000, 9001), torch.float32, (0.5, 1.0), (1.0,), (1.0,))",
    "several-programs": "from_logits((70, 64, 10), torch.float32, (1.0,), (2.0,))",
    "half": "from_logits((3, 40, 33), torch.float16, (1.0, 2.0), (1.0, 32.0))",
    "bfloat16": "from_logits((3, 40, 33), torch.bfloat16, (1.0, 2.0), (1.0, 32.0))",
    "head": f"from_head((5, 70, 33), torch.float32, {ORDERS}, (1.0, 32.0))",
    "head-several-tiles": "from_head((66, 40, 200), torch.float32, (1.0,), (1.0,))",
    "head-without-bias": "from_head((3, 16, 10), torch.float32, (1.0,), (1.0,), False)",
    "strides": """
x, f = rows((8, 6, 2), 1)[:, :, 0], rows((20, 8), 1).t()
expected = last_layer_score(x, f, backend="torch")
agree(last_layer_score(x, f, backend="triton"), expected, 2e-5, "strides")
""",
    "empty": """
assert last_layer_score(torch.zeros(0, 3), torch.zeros(0, 4), backend="triton").shape == (0,)
""",
    "auto": """
x, f = rows((4, 6), 1), rows((4, 5), 1)
found, expected = last_layer_score(x, f), last_layer_score(x, f, backend="torch")
agree(found, expected, 2e-5, "auto")
""",
    "far-below-zero": """
x, f = rows((3, 6), 1), rows((3, 9000), 1)
f[0] = -math.inf
f[0, -2:] = torch.tensor([-2e30, -3e30])
f[1, :5000] = -math.inf
f[2] -= 1e5
for target, p in itertools.product(("uniform", "one-hot"), (1.0, 3.0, math.inf)):
    how = {"p": p, "target": target}
    found, expected = (last_layer_score(x, f, **how, backend=b) for b in ("triton", "torch"))
    agree(found, expected, 2e-5, how)
""",
    "near-uniform-and-near-one-hot": """
# One class apart, all classes apart, one of probability zero; and logits far from zero.
for classes, gap in itertools.product((10, 5000), (1e-3, 0.3)):
    x, f = rows((4, 6), 1e3, 1), rows((4, classes), gap, 1)
    f[0], f[0, 3], f[2, 1] = 0, gap, -math.inf
    f[3] += 100
    for p, t in itertools.product((1.0, 2.0, 3.0, math.inf), (1.0, 1e4)):
        how = {"p": p, "temperature": t}
        exact = last_layer_score(x.double(), f.double(), **how, backend="torch").float()
        agree(last_layer_score(x, f, **how, backend="triton"), exact, 5e-6, (classes, gap, how))
    # V leaves float32's range at the third row; the score does not.
    f[:, 1] = torch.tensor([65.0, 75.0, 90.0, 100.0])
    f[3, 2:] = -math.inf
    for p in (1.0, 2.0, 3.0, math.inf):
        how = {"p": p, "target": "one-hot"}
        exact = last_layer_score(x.double(), f.double(), **how, backend="torch").float()
        agree(last_layer_score(x, f, **how, backend="triton"), exact, 2e-5, (classes, gap, how))
""",
    "tiny-and-huge-features": """
f = rows((4, 5), 1)
for size, p in itertools.product((1e-30, 1e30), (1.0, 2.0, 3.0, math.inf)):
    x = rows((4, 70), size, 1)
    how = {"p": p, "temperature": size}
    found = last_layer_score(x, f * size, **how, backend="triton")
    agree(found, last_layer_score(x / size, f, p=p, backend="torch"), 2e-5, (size, p))
""",
    "not-finite": """
from gradscore.errors import InvalidArgument
warnings.simplefilter("ignore")
for bad, classes in itertools.product((math.nan, math.inf, -math.inf), (4, 5000)):
    orders = (1.0, 2.0, 3.0, math.inf) if classes == 4 else (1.0,)
    for p, target, broken in itertools.product(orders, ("uniform", "one-hot"), "xf"):
        x, f = rows((5, 6), 1), rows((5, classes), 1)
        # One class of minus infinity has probability zero; a row of it has no softmax.
        (x[3, 2:3] if broken == "x" else f[3] if bad < 0 else f[3, 2:3])[...] = bad
        try:
            last_layer_score(x, f, p=p, target=target, backend="triton")
        except InvalidArgument as error:
            assert "in row 3" in str(error), error
        else:
            raise AssertionError((bad, classes, p, target, broken))
""",
}

WRONG = f"""
from gradscore.closed_form import cuda
right, cuda.kind_of = cuda.kind_of, lambda p: 1
try:
    {CHECKS["half"]}
finally:
    cuda.kind_of = right
"""
"""A check that must fail: the kernels compute the norm of order 1 whatever is asked."""

INTERPRETED = {
    **CHECKS,
    "float64": "last_layer_score(torch.ones(2, 3), torch.ones(2, 4).double(), backend='triton')",
    "wrong": WRONG,
}
PLAIN = {
    "not loaded": """
last_layer_score(rows((2, 3), 1), rows((2, 4), 1))
assert "triton" not in sys.modules
""",
    "triton": "last_layer_score(rows((2, 3), 1), rows((2, 4), 1), backend='triton')",
    "cuda": "last_layer_score(rows((2, 3), 1), rows((2, 4), 1), backend='cuda')",
}
"""What is asked where triton would compile, the first before anything can have loaded it."""


@pytest.fixture(scope="module")
def interpreted():
    return failures(CASES, INTERPRETED, TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def plain():
    return failures(CASES, PLAIN, TRITON_INTERPRET="0")


@pytest.mark.parametrize("name", CHECKS)
def test_interpreted_kernels_equal_torch(interpreted, name):
    assert name not in interpreted, interpreted[name]


def test_a_wrong_kernel_would_be_found(interpreted):
    assert "AssertionError" in interpreted["wrong"]


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("triton", "it runs on CUDA, got a tensor on cpu"),
        ("cuda", "Expected backend auto, torch, numba, triton, got 'cuda'"),
    ],
)
def test_a_backend_that_cannot_serve_is_refused(plain, backend, message):
    assert message in plain[backend].splitlines()[-1]


def test_float64_is_refused_by_triton(interpreted):
    assert "it takes float16, bfloat16 and float32, got torch.float64" in interpreted["float64"]


def test_no_triton_is_loaded_where_torch_serves(plain):
    assert "not loaded" not in plain, plain["not loaded"]


@pytest.fixture
def launcher(monkeypatch):
    """Return the module that launches kernels; what was found out about devices is forgotten."""
    monkeypatch.setattr(cuda, "_runs_on", cache(cuda._runs_on.__wrapped__))
    return cuda


def test_auto_is_torch_where_the_launcher_cannot_be_built_and_says_so_once(launcher, monkeypatch):
    def no_compiler(device):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(launcher, "_launch_one_row", no_compiler)
    x, f = torch.randn(4, 3), torch.randn(4, 5)
    there = x.as_subclass(OnCuda), f.as_subclass(OnCuda)
    with pytest.warns(GradScoreWarning, match="compiler. Scores are computed by torch") as told:
        found = [last_layer_score(*there) for _ in range(2)]
    assert len(told) == 1
    for score in found:
        assert torch.equal(
            score.as_subclass(torch.Tensor), last_layer_score(x, f, backend="torch")
        )


def test_auto_is_triton_where_the_launcher_can_be_built(launcher, monkeypatch):
    tried = []
    monkeypatch.setattr(launcher, "_launch_one_row", tried.append)
    x = torch.ones(2, 3).as_subclass(OnCuda)
    assert [use_triton("auto", x) for _ in range(2)] == [True, True]
    assert len(tried) == 1
    assert not use_triton("auto", torch.ones(2, 3))
    assert not use_triton("auto", x.double().as_subclass(OnCuda))


def test_memory_that_ends_is_no_missing_compiler(launcher, monkeypatch):
    def full(device):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(launcher, "_launch_one_row", full)
    with pytest.raises(torch.OutOfMemoryError):
        use_triton("auto", torch.ones(2, 3).as_subclass(OnCuda))


def test_a_kernel_is_launched_on_the_device_of_its_tensors(launcher, monkeypatch):
    from gradscore.closed_form import triton_kernels

    seen = note_launches(monkeypatch, triton_kernels, "closed_form_kernel")
    how = {"p": 1.0, "temperature": 1.0, "target": "uniform"}
    with FakeTensorMode():
        x, f = torch.ones(2, 3, device="cuda:1"), torch.ones(2, 4, device="cuda:1")
        launcher.from_logits(x, f, **how)
        launcher.from_head(x, torch.ones(4, 3, device="cuda:1"), None, **how)
    assert seen == [((1,), [torch.device("cuda:1")])] * 2
    launcher.from_logits(torch.ones(2, 3), torch.ones(2, 4), **how)
    assert seen[2:] == [((1,), [])]


@pytest.mark.cuda
def test_compiled_kernels_equal_torch():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_device = (
        "torch.set_default_device('cuda')\n"
        "torch.Generator = lambda make=torch.Generator: make('cuda')\n"
    )
    assert failures(CASES + on_device, CHECKS, TRITON_INTERPRET="0") == {}
