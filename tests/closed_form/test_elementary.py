"""The compiled exponential and logarithm of float64 keep its last digits."""

import math

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

from gradscore.closed_form.elementary import exp64, log64  # noqa: E402


@numba.njit(error_model="numpy")
def results(z, less, x):
    exponentials, logarithms = np.empty_like(z), np.empty_like(x)
    for k in range(len(z)):
        exponentials[k] = exp64(z[k], less)
    for k in range(len(x)):
        logarithms[k] = log64(x[k])
    return exponentials, logarithms


Z = np.concatenate([np.linspace(-708, 709, 4001), np.linspace(-1, 1, 4001), [-1e-9, 1e-9]])
X = np.concatenate([np.geomspace(1e-300, 1, 4001), np.linspace(0.5, 1, 4001)[:-1]])


def test_the_exponential_is_that_of_numpy_to_a_few_last_places():
    found, _ = results(Z, 0.0, X)
    np.testing.assert_allclose(found, np.exp(Z), rtol=1e-15, atol=0)


def test_the_exponential_less_one_keeps_its_digits_near_zero():
    found, _ = results(Z, 1.0, X)
    np.testing.assert_allclose(found, np.expm1(Z), rtol=1e-15, atol=0)


def test_the_logarithm_is_that_of_numpy_to_a_few_last_places():
    _, found = results(Z, 0.0, X)
    np.testing.assert_allclose(found, np.log(X), rtol=1e-15, atol=0)


def test_what_is_no_number_stays_none():
    exponentials, logarithms = results(np.array([-math.inf, -800.0, math.nan]), 0.0, np.zeros(1))
    np.testing.assert_array_equal(exponentials, [0.0, 0.0, math.nan])
    assert logarithms[0] == -math.inf
    assert np.isnan(results(Z[:1], 0.0, np.array([math.nan]))[1][0])
