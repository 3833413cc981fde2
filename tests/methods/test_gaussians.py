"""Class Gaussians of one covariance, against Lee et al.'s equations written out."""

import numpy as np
import pytest
import torch
from helpers.transcriptions import literal_confidence

from gradscore.errors import InvalidArgument
from gradscore.gaussians import fit_gaussians


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


def test_nothing_to_fit_to_is_refused():
    with pytest.raises(InvalidArgument, match="labelled rows to fit to, got none"):
        fit_gaussians(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
