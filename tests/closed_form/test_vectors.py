"""Vectors in compiled loops must do what NumPy does entry by entry."""

import math

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

from gradscore.closed_form import vectors as v  # noqa: E402
from gradscore.closed_form.vectors import (  # noqa: E402
    absolute,
    any_of,
    first,
    fma,
    larger,
    largest_of,
    load,
    load_some,
    not_below,
    select,
    smaller,
    smallest_of,
    spread,
    store,
    times_power,
    total_of,
)

F = np.float32


def compiled(function):
    return numba.njit(error_model="numpy")(function)


@compiled
def entry_by_entry(x, y, out):
    a, b = load(x, 0, 16), load(y, 0, 16)
    store(out[0], 0, a + b)
    store(out[1], 0, F(2) - a)
    store(out[2], 0, a * F(3))
    store(out[3], 0, a / b)
    store(out[4], 0, larger(a, b))
    store(out[5], 0, smaller(a, F(0.5)))
    store(out[6], 0, fma(a, b, F(1)))
    store(out[7], 0, absolute(a))
    store(out[8], 0, select(a < b, a, F(7)))
    store(out[9], 0, select(a > F(0), b, spread(F(-1), 16)))
    store(out[10], 0, select(not_below(a, b), a, b))


@compiled
def to_one_number(x, out):
    a = load(x, 0, 64)
    out[0], out[1], out[2] = total_of(a), largest_of(a), smallest_of(a)
    return any_of(a > F(9)), any_of(a > F(62))


@compiled
def some_of(x, place, n, out):
    store(out, 0, load_some(x, place, first(n, 64), F(-5)))


@compiled
def powers(x, rounded, out):
    store(out, 0, times_power(load(x, 0, 16), load(rounded, 0, 16)))


@compiled
def of_numbers(a, b, c):
    return fma(a, b, c)


def test_each_operation_is_that_of_numpy():
    x, y = np.random.default_rng(0).standard_normal((2, 16)).astype(F)
    x[0], y[1] = math.nan, math.nan
    out = np.empty((11, 16), F)
    entry_by_entry(x, y, out)
    expected = (
        x + y, 2 - x, x * 3, x / y, np.where(x > y, x, y), np.where(x < 0.5, x, F(0.5)),
        None, abs(x), np.where(x < y, x, 7), np.where(x > 0, y, -1), np.where(x < y, y, x),
    )  # fmt: skip
    for k, numbers in enumerate(expected):
        if numbers is not None:
            np.testing.assert_array_equal(out[k], numbers.astype(F))
    np.testing.assert_allclose(out[6], x.astype(float) * y + 1, rtol=1e-6, atol=1e-7)
    assert of_numbers(3.0, 4.0, 5.0) == 17.0


def test_a_vector_is_taken_to_one_number():
    out = np.empty(3)
    found = to_one_number(np.random.default_rng(0).permutation(64).astype(F), out)
    assert (*out, *found) == (63 * 32, 63, 0, True, True)
    found = to_one_number(np.full(64, 9.0, F), out)
    assert (*out, *found) == (9 * 64, 9, 9, False, False)


@pytest.mark.parametrize("n", [0, 1, 17, 63, 64])
def test_what_is_behind_the_end_is_not_read(n):
    x, out = np.arange(100, dtype=F), np.empty(64, F)
    some_of(x, 100 - n, n, out)
    np.testing.assert_array_equal(out, np.r_[x[100 - n :], np.full(64 - n, -5)])


def test_a_power_of_two_is_added_to_the_exponent():
    k = np.linspace(-120, 120, 16).astype(np.int32)
    x, out = np.random.default_rng(0).uniform(0.7, 1.5, 16).astype(F), np.empty(16, F)
    powers(x, (12582912 + k).astype(F), out)
    np.testing.assert_array_equal(out, np.ldexp(x, k))


def test_vectors_of_two_widths_do_not_meet():
    @compiled
    def add(x):
        return total_of(load(x, 0, 16) + load(x, 0, 32))

    with pytest.raises(numba.TypingError):
        add(np.ones(64, F))
    assert v.Vector(16) == v.Vector(16) != v.Vector(16, bits=True)
