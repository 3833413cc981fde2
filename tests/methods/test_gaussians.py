"""Class Gaussians of one covariance, against Lee et al.'s equations written out."""

import weakref

import numpy as np
import pytest
import torch
from helpers.transcriptions import literal_confidence

from gradscore import gaussians
from gradscore.errors import InvalidArgument
from gradscore.gaussians import ClassGaussians, fit_gaussians, fit_streamed_gaussians


def drawn(rows=60, width=5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, width)) @ rng.normal(size=(width, width)), np.arange(rows) % 3


def test_confidence_is_the_equation():
    x, y = drawn()
    fitted = fit_gaussians(torch.from_numpy(x).float(), torch.from_numpy(y))
    z = np.random.default_rng(1).normal(size=(7, 5))
    expected = literal_confidence(z, x.astype(np.float32).astype(np.float64), y)
    np.testing.assert_allclose(fitted.confidence(torch.from_numpy(z)), expected, rtol=1e-9)


def test_gradient_is_that_of_autograd():
    x, y = drawn()
    fitted = fit_gaussians(torch.from_numpy(x), torch.from_numpy(y))
    z = torch.from_numpy(x[:9]).requires_grad_()
    (expected,) = torch.autograd.grad(fitted.confidence(z).sum(), z)
    torch.testing.assert_close(fitted.gradient(z.detach()), expected)


def test_a_singular_covariance_has_a_pseudo_inverse_and_absent_classes_no_mean():
    x, y = drawn(30, 6)
    x[:, 4], x[:, 5] = x[:, 0], 0
    y = np.array([0, 2, 3])[y]
    fitted = fit_gaussians(torch.from_numpy(x), torch.from_numpy(y))
    assert fitted.means.shape == (3, 6)
    expected = literal_confidence(x[:7], x, y)
    np.testing.assert_allclose(fitted.confidence(torch.from_numpy(x[:7])), expected, rtol=1e-9)


def test_blocks_teach_what_all_rows_do_and_none_is_kept():
    x, y = (torch.from_numpy(values) for values in drawn(600))
    alive = weakref.WeakSet()

    def source():
        for start in range(0, 600, 50):
            # In turn, so that some blocks lack a class, and one has no labelled row.
            part = slice(start, start + 50) if start else slice(0, 0)
            features = x[part].float().clone()
            alive.add(features)
            assert len(alive) <= 2
            yield features, torch.where(y[part] == 2, 4, y[part])

    whole = fit_gaussians(x[50:].float(), y[50:])
    streamed = fit_streamed_gaussians(source, 6)
    torch.testing.assert_close(streamed.means, whole.means, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(streamed.precision, whole.precision, rtol=1e-11, atol=1e-12)


def test_nothing_to_fit_to_is_refused():
    with pytest.raises(InvalidArgument, match="labelled rows to fit to, got none"):
        fit_gaussians(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def means_of(kind):
    """Return means, and features to ask for the nearest of them."""
    rng = np.random.default_rng(2)
    means = torch.from_numpy(rng.normal(size=(12, 6)))
    features = torch.from_numpy(rng.normal(size=(20, 6)))
    if kind == "at a mean":
        features = means.repeat(2, 1)[:20] + 1e-13 * features
    elif kind == "far from zero":  # squares lose what the differences are made of
        means, features = (1e8 + 1e-2 * values for values in (means, features))
    elif kind == "two are the same":
        means[7] = means[2]
        features[:5] = means[2]
    elif kind == "all are the same":
        means[:] = means[0]
    elif kind == "too large":  # for squares
        features[3] = 1e200
    return ClassGaussians(means, torch.eye(6, dtype=torch.float64)), features


KINDS = ["any", "at a mean", "far from zero", "two are the same", "all are the same", "too large"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_of_many_means_is_that_of_all_differences(kind, monkeypatch):
    fitted, features = means_of(kind)
    distances = (features[:, None] - fitted.means).norm(dim=2)
    monkeypatch.setattr(gaussians, "FEW", 0)
    nearest, places = fitted._nearest(features)
    torch.testing.assert_close(nearest, distances.amin(dim=1), rtol=1e-13, atol=0)
    torch.testing.assert_close(fitted.means[places], fitted.means[distances.argmin(dim=1)])
    monkeypatch.setattr(gaussians, "FEW", 1 << 14)
    torch.testing.assert_close(fitted._nearest(features)[0], nearest, rtol=1e-13, atol=0)
