"""Norms of any order, against float64 and NumPy, at the ends of the type's range."""

import math

import numpy as np
import pytest
import torch

from gradscore.errors import InvalidArgument
from gradscore.norms import check_order, combine_norms, number_name, vector_norm

ORDERS = [0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 6.0, math.inf]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}


def numpy_norm(x, p, axis):
    """Plainly right: powers in longdouble, whose range nothing here leaves."""
    magnitude = np.abs(x.double().numpy()).astype(np.longdouble)
    if p == math.inf:
        return magnitude.max(axis=axis).astype(np.float64)
    return ((magnitude**p).sum(axis=axis) ** (1 / p)).astype(np.float64)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("dim", [1, -1, (1, 2), (-1, 0)], ids=str)
def test_equals_numpy(p, dim, dtype):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 40, generator=rng).to(dtype)
    norm = vector_norm(x, p, dim)
    assert norm.dtype == torch.promote_types(dtype, torch.float32)
    expected = torch.from_numpy(numpy_norm(x, p, dim))
    torch.testing.assert_close(norm.double(), expected, rtol=TOLERANCE[dtype], atol=0)


@pytest.mark.parametrize("p", ORDERS)
def test_a_long_row_keeps_its_digits(p):
    x = torch.full((1, 21843), 0.1)
    torch.testing.assert_close(
        vector_norm(x, p).double(), vector_norm(x.double(), p), rtol=2e-6, atol=0
    )


SIZES = {  # towards the ends of each type's range
    torch.float64: (1e-300, 1e300),
    torch.float32: (1e-32, 1e30),
    torch.bfloat16: (1e-32, 1e30),
    torch.float16: (1e-4, 1e4),
}


@pytest.mark.parametrize("dtype", SIZES, ids=str)
@pytest.mark.parametrize("end", [0, 1], ids=["small", "large"])
@pytest.mark.parametrize("p", [*ORDERS, 8.0, 40.0])
def test_neither_overflows_nor_underflows(p, end, dtype):
    drawn = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (drawn * SIZES[dtype][end]).to(dtype)
    x[1] = 0
    unit = float(x.double().abs().max())
    expected = torch.from_numpy(numpy_norm(x.double() / unit, p, (1, 2)))
    for norm in (
        vector_norm(x, p, (1, 2)),
        combine_norms(vector_norm(x, p, 2).unbind(1), p),
        vector_norm(x.movedim(0, 2), p, (0, 1)),
    ):
        tolerance = max(1e-12, TOLERANCE[dtype])
        torch.testing.assert_close(norm.double() / unit, expected, rtol=tolerance, atol=0)


def test_a_norm_does_not_depend_on_its_company():
    x = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    other = torch.cat([x, 1e-30 * x, 1e30 * x])
    assert torch.equal(vector_norm(other, 2.0)[:4], vector_norm(x, 2.0))


@pytest.mark.parametrize("p", ORDERS)
def test_what_is_not_finite_stays_so(p):
    x = torch.tensor([[1.0, math.inf, 2.0], [1.0, math.nan, 2.0], [3.0, 4.0, 0.0]])
    norms = vector_norm(x, p)
    assert [bool(norm.isfinite()) for norm in norms] == [False, False, True]
    torch.testing.assert_close(norms[2], vector_norm(x[2], p))


@pytest.mark.parametrize("p", ORDERS)
def test_of_zeros_and_of_nothing_is_zero(p):
    assert vector_norm(torch.zeros(2, 3), p).tolist() == [0, 0]
    assert vector_norm(torch.zeros(2, 0), p).tolist() == [0, 0]
    assert vector_norm(torch.zeros(0, 3), p).shape == (0,)


@pytest.mark.parametrize("p", ORDERS)
def test_the_entries_stay_as_they_are(p):
    x = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    vector_norm(x, p)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("p", ORDERS)
def test_parts_combine_to_the_whole(p):
    x = torch.randn(4, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [vector_norm(part, p) for part in x.split([7, 1, 22], dim=1)]
    torch.testing.assert_close(combine_norms(parts, p), vector_norm(x, p), rtol=1e-12, atol=0)


def test_no_parts_are_refused():
    with pytest.raises(InvalidArgument, match="at least one norm to combine, got none"):
        combine_norms([], 1.0)


@pytest.mark.parametrize("p", [0, -1.0, math.nan, "two", None, -math.inf])
def test_a_bad_order_is_named(p):
    with pytest.raises(InvalidArgument, match=r"Expected a norm of order p > 0, got p = "):
        check_order(p)


def test_names_of_numbers_are_canonical():
    names = [number_name(x) for x in (1, 1.0, 0.3, 1024, math.inf, 2.5, 1e20)]
    assert names == ["1", "1", "0.3", "1024", "inf", "2.5", "1e+20"]
