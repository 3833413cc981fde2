"""The loops compiled by numba must say what the plain form says, for every kind of row."""

import ast
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscore.closed_form import (
    cpu,
    deviation_norms,
    feature_norms,
    head_score,
    last_layer_score,
    plain,
)
from gradscore.errors import GradScoreWarning, InvalidArgument
from gradscore.objective import Objective

numba = pytest.importorskip("numba", reason="numba is not installed")

DIGITS = {torch.float32: 2e-6, torch.float64: 1e-10}
"""Most that a norm may be off; of a row's entries, float32 itself keeps 6e-8."""

ORDERS = (0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 17.0, math.inf)
ROWS = {
    "drawn": lambda r, n: 3 * r,
    "flat": lambda r, n: 0 * r + 0.25,
    "nearly flat": lambda r, n: 1e-6 * r,
    "nearly flat and far": lambda r, n: 1000 + 1e-2 * r,
    "moderate": lambda r, n: 0.3 * r,
    "sharp": lambda r, n: 3 * r + 40 * (torch.arange(n) == n // 2),
    "very sharp": lambda r, n: r + 200 * (torch.arange(n) == n // 2),
    "two largest": lambda r, n: r.clamp(max=1) + 9 * (torch.arange(n) < 2),
    "one far below": lambda r, n: 1e-3 * r - 60 * (torch.arange(n) == 0),
    "one above": lambda r, n: 1e-3 * r + 5 * (torch.arange(n) == n - 1),
    "half the largest": lambda r, n: (1e-3 * r - 0.73) * (torch.arange(n) > 0),
    "masked": lambda r, n: r - 1e4 * (torch.arange(n) % 2),
    "without some": lambda r, n: torch.where(torch.arange(n) % 3 == 1, -math.inf, r),
    "tiny": lambda r, n: 1e-30 * r,
    "large": lambda r, n: 1e4 * r,
}
"""Logits from normal draws; the digits of a norm are lost in one or another by each
plain formula."""


def kinds_of_rows(classes, dtype, seed=0):
    rng = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(classes, generator=rng, dtype=torch.float64) for _ in ROWS)
    return torch.stack([row(r, classes) for row, r in zip(ROWS.values(), drawn, strict=True)]).to(
        dtype
    )


def assert_same(found, expected, dtype, what):
    # Below the range of float32 nothing is promised of it.
    floor = 1e-37 if dtype == torch.float32 else 1e-290
    torch.testing.assert_close(
        found,
        expected,
        rtol=DIGITS[dtype],
        atol=floor,
        equal_nan=True,
        msg=lambda m: f"{what} {m}",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 10, 33, 64, 100, 128, 129, 1000, 21843])
def test_every_kind_of_row_keeps_its_digits(classes, dtype):
    # Of few classes whole blocks of rows and a part of one: they go two ways.
    seeds = range(3 if classes < 1000 else 1)
    logits = torch.cat([kinds_of_rows(classes, dtype, seed) for seed in seeds])
    asked = [
        Objective(p, t, target)
        for p in (1.0, 2.0, 0.5, math.inf)
        for t in (0.5, 1.0, 3.0, 1024.0)
        for target in ("uniform", "one-hot")
    ]
    found, expected = cpu.deviation_norms(logits, asked), plain.deviation_norms(logits, asked)
    for objective, *both in zip(asked, found, expected, strict=True):
        assert_same(*both, dtype, objective)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.sampled_from([1, 5, 16, 37]),
    classes=st.one_of(st.integers(1, 130), st.integers(1, 3000)),
    scale=st.sampled_from([1e-8, 1e-4, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0]),
    offset=st.sampled_from([0.0, 7.0, -1000.0]),
    temperature=st.floats(0.05, 2000),
    orders=st.lists(st.sampled_from(ORDERS), min_size=1, max_size=4),
    target=st.sampled_from(["uniform", "one-hot"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_any_logits_give_what_the_plain_form_gives(
    rows, classes, scale, offset, temperature, orders, target, dtype, seed
):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=rng, dtype=torch.float64) * scale + offset
    logits = logits.to(dtype)
    asked = [Objective(p, temperature, target) for p in orders]
    found, expected = cpu.deviation_norms(logits, asked), plain.deviation_norms(logits, asked)
    for objective, *both in zip(asked, found, expected, strict=True):
        assert_same(*both, dtype, objective)


@settings(max_examples=60, deadline=None)
@given(
    columns=st.integers(1, 1200),
    exponent=st.sampled_from([-200, -40, -25, 0, 20, 38, 150]),
    orders=st.lists(st.sampled_from(ORDERS), min_size=1, max_size=4),
    zeros=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_any_features_give_what_the_plain_form_gives(
    columns, exponent, orders, zeros, dtype, seed
):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(3, columns, generator=rng, dtype=torch.float64)
    x = (x.relu() if zeros else x).mul(10.0**exponent).to(dtype).nan_to_num(posinf=0, neginf=0)
    assert_same(cpu.feature_norms(x, orders), plain.feature_norms(x, orders), dtype, orders)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("columns", [1, 2, 10, 70, 600])
def test_what_is_not_finite_reaches_the_result(columns, place, bad):
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(3, columns, dtype=dtype, generator=torch.Generator().manual_seed(1))
        x[1, min(place, columns - 1)] = bad
        assert_same(cpu.feature_norms(x, ORDERS), plain.feature_norms(x, ORDERS), dtype, "x")
        for target in ("uniform", "one-hot"):
            asked = [Objective(p, t, target) for p in ORDERS for t in (1.0, 8.0)]
            found, expected = cpu.deviation_norms(x, asked), plain.deviation_norms(x, asked)
            assert_same(found, expected, dtype, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_raised_without_loss(dtype):
    x = torch.randn(40, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[3, 4] = 6e-8  # below the normal range of float16
    assert torch.equal(cpu.feature_norms(x, [1.0]), cpu.feature_norms(x.float(), [1.0]))
    assert torch.equal(
        cpu.feature_norms(x[::2, 1::3], [2.0]), cpu.feature_norms(x.float()[::2, 1::3], [2.0])
    )


@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=str)
def test_rows_in_any_order_are_served_by_the_same_compiled_loops(dtype):
    x = torch.randn(70, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = feature_norms(x.t().contiguous(), [1.0], backend="numba")
    loops = cpu._kernels(cpu._number(dtype))[0]
    before = list(loops.signatures)
    assert torch.equal(feature_norms(x.t(), [1.0], backend="numba"), found)
    assert loops.signatures == before


@pytest.mark.parametrize("features", [math.inf, 3e38], ids=str)
def test_a_score_beyond_its_type_is_refused_as_by_torch(features):
    x, f = torch.full((2, 9), features), torch.tensor([[0.0, 0.0], [99.0, 0.0]])
    for backend in ("numba", "torch"):
        with pytest.raises(InvalidArgument, match=r"finite features and logits, got .* in row"):
            last_layer_score(x, f, backend=backend)


@pytest.fixture
def _threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(cpu, "CHUNK_ENTRIES", (64, 256))
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("classes", [10, 100])
def test_rows_shared_out_among_threads_are_each_as_if_alone(classes):
    rng = torch.Generator().manual_seed(0)
    x, f = torch.randn(300, 7, generator=rng), torch.randn(300, classes, generator=rng)
    alone = torch.cat([last_layer_score(x[i : i + 1], f[i : i + 1]) for i in range(300)])
    assert torch.equal(last_layer_score(x, f), alone)


@pytest.mark.usefixtures("_threads")
def test_an_error_in_a_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(
        cpu, "_raised", lambda rows: (_ for _ in ()).throw(MemoryError("none left"))
    )
    with pytest.raises(MemoryError, match="none left"):
        feature_norms(torch.ones(300, 7), [1.0])


@pytest.fixture
def _fresh():
    cpu._kernels.cache_clear()
    cpu._tell.cache_clear()
    yield
    cpu._kernels.cache_clear()
    cpu._tell.cache_clear()


@pytest.mark.usefixtures("_fresh")
def test_without_numba_torch_computes_and_it_is_told_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradscore.closed_form.cpu_kernels", None)
    x, f = torch.ones(2, 3), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    with pytest.warns(GradScoreWarning, match="Expected the package numba, which scores on a CPU"):
        score = last_layer_score(x, f)
    assert torch.equal(score, last_layer_score(x, f, backend="torch"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(last_layer_score(x.double(), f.double()).float(), score)
    with pytest.raises(
        InvalidArgument, match=r"backend 'numba' can serve.* and the package numba"
    ):
        last_layer_score(x, f, backend="numba")


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("error", [RuntimeError("no locator"), OSError(28, "No space left")])
def test_without_a_folder_for_compiled_code_it_is_compiled_and_told(monkeypatch, error):
    kernels = cpu._kernels(np.float32)
    cpu._kernels.cache_clear()

    def make_kernels(dtype, *, cached):
        if cached:
            raise error
        return kernels

    monkeypatch.setattr("gradscore.closed_form.cpu_kernels.make_kernels", make_kernels)
    with pytest.warns(GradScoreWarning, match="Set NUMBA_CACHE_DIR to one that can be written"):
        assert cpu.serves(torch.ones(1))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 3, device="meta"),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3).as_subclass(type("Own", (torch.Tensor,), {})),
    ],
    ids=["meta", "sparse", "subclass"],
)
def test_tensors_of_another_kind_are_left_to_torch(tensor):
    assert not cpu.serves(tensor)


def test_in_graphs_and_transforms_torch_computes(monkeypatch):
    x = torch.randn(4, 3)
    expected = feature_norms(x, [1.0])[0]
    mapped = torch.func.vmap(lambda row: feature_norms(row[None], [1.0])[0, 0])(x)
    torch.testing.assert_close(mapped, expected)
    assert cpu.serves(x)
    for inside in ((torch.compiler, "is_compiling"), (torch.jit, "is_tracing")):
        with monkeypatch.context() as patch:
            patch.setattr(*inside, lambda: True)
            assert not cpu.serves(x)


def test_the_backend_is_one_that_is_known():
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    for ask in (
        lambda: head_score(x, weight, backend="cuda"),
        lambda: feature_norms(x, [1.0], backend="cuda"),
        lambda: deviation_norms(x, [Objective()], backend="cuda"),
    ):
        with pytest.raises(InvalidArgument, match="Expected backend auto, torch, numba, triton"):
            ask()
    with pytest.raises(
        InvalidArgument, match=r"got torch.float32 on meta; choose `backend='auto'"
    ):
        deviation_norms(torch.ones(2, 3, device="meta"), [Objective()], backend="numba")


def test_the_cache_knows_every_file_that_is_compiled():
    from gradscore.closed_form import cpu_kernels

    folder = Path(cpu_kernels.__file__).parent
    compiled = {
        path.stem
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and (node.module.startswith("numba") or node.module.endswith(".elementary"))
    }
    assert compiled - {"cpu_kernels"} == {
        module.__name__.split(".")[-1] for module in cpu_kernels.COMPILED
    }
