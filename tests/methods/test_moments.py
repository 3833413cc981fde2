"""Means, covariances and percentiles of streamed rows, against those of all rows at once."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from gradscore.errors import InvalidArgument
from gradscore.methods.moments import Moments, inverse_root, percentile, shrunk


def drawn(rows=101, columns=5, seed=0):
    rng = np.random.default_rng(seed)
    return 100 + rng.normal(size=(rows, columns)) @ rng.normal(size=(columns, columns))


def streamed(x, size=7):
    moments = Moments()
    for part in torch.from_numpy(x).split(size):
        moments.add(part)
    return moments


def test_moments_are_those_of_all_rows():
    x = drawn()
    moments = streamed(x)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T, bias=True), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moments.deviation, x.std(0), rtol=1e-9)
    assert moments.count == len(x)


def test_a_constant_column_has_no_deviation_at_all():
    x = drawn().astype(np.float32)
    x[:, 2] = 0.1
    x[:, 3] = 0.1 + 1e-8 * (np.arange(len(x)) % 2)
    assert streamed(x).deviation.gt(0).tolist() == [True, True, False, False, True]


@pytest.mark.parametrize(("rows", "columns"), [(101, 5), (8, 20), (40, 1)], ids=str)
def test_shrinkage_is_that_of_ledoit_and_wolf(rows, columns):
    x = drawn(rows, columns)
    z = (x - x.mean(0)) / x.std(0)
    expected, _ = ledoit_wolf(z, assume_centered=True)
    covariance = torch.from_numpy(z.T @ z / rows)
    found = shrunk(covariance, float(np.mean((z**2).sum(1) ** 2)), rows)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_the_root_measures_by_the_inverse():
    covariance = torch.from_numpy(np.cov(drawn().T))
    root = inverse_root(covariance)
    torch.testing.assert_close(root @ root.T, torch.linalg.inv(covariance))
    with pytest.raises(InvalidArgument, match="rows that vary in every direction"):
        inverse_root(torch.zeros(2, 2))


@pytest.mark.parametrize("percent", [0, 5, 37.5, 90, 100])
@pytest.mark.parametrize(
    "entries",
    [
        np.random.default_rng(0).normal(size=1001),
        -np.random.default_rng(1).exponential(size=10),
        np.repeat([0.0, -0.0, 1e-40, 3e38, -3e38], 3),
        np.ones(1),
    ],
    ids=["normal", "negative", "extreme", "one"],
)
def test_percentile_is_exact(entries, percent):
    entries = entries.astype(np.float32)
    blocks = torch.from_numpy(entries).split(4)
    found = percentile(lambda: blocks, percent)
    assert found == pytest.approx(np.percentile(entries.astype(float), percent), rel=1e-12)


def test_no_entry_has_no_percentile():
    with pytest.raises(InvalidArgument, match="entries to take a percentile of, got none"):
        percentile(list, 50)
