"""One Gaussian a class, all of one covariance (Lee et al., NeurIPS 2018, Eqs. 1 and 2)."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradscore.errors import InvalidArgument


@dataclass(frozen=True)
class ClassGaussians:
    """Gaussians that share their covariance.

    Attributes:
        means: Shape ``[known classes, features]``, float64.
        precision: Inverse of the tied covariance (its pseudo-inverse where it is singular), shape
            ``[features, features]``, float64.
    """

    means: Tensor
    precision: Tensor

    def to(self, device: torch.device | str) -> "ClassGaussians":
        """Return the same on a device."""
        return ClassGaussians(self.means.to(device), self.precision.to(device))

    @cached_property
    def _root(self) -> Tensor:
        """A matrix ``R`` with ``P = R R^T``, which turns the distance into a Euclidean one."""
        values, vectors = torch.linalg.eigh(self.precision)
        return vectors * values.clamp_min(0).sqrt()

    def confidence(self, features: Tensor) -> Tensor:
        """Return the largest ``-1/2 (z - mu)^T P (z - mu)`` over the classes, shape ``[batch]``.

        Args:
            features: Shape ``[batch, features]``.

        Returns:
            Confidences without unit, at most 0, float64.
        """
        return -0.5 * self._distances(features).amin(dim=1).square()

    def gradient(self, features: Tensor) -> Tensor:
        """Return the gradient of :meth:`confidence` with respect to the features.

        Args:
            features: Shape ``[batch, features]``.

        Returns:
            ``-P (z - mu)`` of the nearest class, shape ``[batch, features]``, float64.
        """
        nearest = self.means[self._distances(features).argmin(dim=1)]
        return (nearest - features.double()) @ self.precision

    def _distances(self, features: Tensor) -> Tensor:
        z, means = features.double() @ self._root, self.means @ self._root
        # Differences, not products: near a mean those would cancel.
        if torch.compiler.is_compiling():  # ONNX has no such distance
            return torch.stack([(z - mean).square().sum(dim=1).sqrt() for mean in means], dim=1)
        return torch.cdist(z, means, compute_mode="donot_use_mm_for_euclid_dist")


def fit_gaussians(features: Tensor, labels: Tensor) -> ClassGaussians:
    """Return the maximum-likelihood Gaussians of labelled features.

    Args:
        features: Shape ``[rows, features]``.
        labels: Their class numbers, shape ``[rows]``; classes without a row have no mean.

    Raises:
        InvalidArgument: If there is no row.
    """
    from sklearn.covariance import EmpiricalCovariance

    if not len(labels):
        raise InvalidArgument("Expected labelled rows to fit to, got none.")
    x = features.double()
    classes, place = labels.unique(return_inverse=True)
    sums = x.new_zeros(len(classes), x.shape[1]).index_add_(0, place, x)
    means = sums / place.bincount()[:, None]
    covariance = EmpiricalCovariance(assume_centered=True).fit((x - means[place]).numpy())
    return ClassGaussians(means, torch.from_numpy(covariance.precision_))
