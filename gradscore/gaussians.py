"""One Gaussian a class, all of one covariance (Lee et al., NeurIPS 2018, Eqs. 1 and 2)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gradscore.errors import InvalidArgument

FEW = 1 << 14
"""Numbers in all means up to which all distances take no longer than choosing among them."""
MOST_CANDIDATES = 4
"""Means a row that may be the nearest, on average; of more, all distances are taken."""


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

    @cached_property
    def _turned_means(self) -> Tensor:
        return self.means @ self._root

    def confidence(self, features: Tensor) -> Tensor:
        """Return the largest ``-1/2 (z - mu)^T P (z - mu)`` over the classes, shape ``[batch]``.

        Args:
            features: Shape ``[batch, features]``.

        Returns:
            Confidences without unit, at most 0, float64.
        """
        return -0.5 * self._nearest(features)[0].square()

    def gradient(self, features: Tensor) -> Tensor:
        """Return the gradient of :meth:`confidence` with respect to the features.

        Args:
            features: Shape ``[batch, features]``.

        Returns:
            ``-P (z - mu)`` of the nearest class, shape ``[batch, features]``, float64.
        """
        nearest = self.means[self._nearest(features)[1]]
        return (nearest - features.double()) @ self.precision

    def _nearest(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance to the nearest mean and its place, shapes ``[batch]``."""
        z, means = features.double() @ self._root, self._turned_means
        if torch.compiler.is_compiling():  # ONNX has no such distance, and no number of candidates
            distances = [(z - mean).square().sum(dim=1).sqrt() for mean in means]
            return torch.stack(distances, dim=1).min(dim=1)
        if means.numel() < FEW or z.requires_grad:
            return _distances(z, means).min(dim=1)
        # Products say which means may be the nearest: differences of all take far longer.
        squares = z.square().sum(dim=1, keepdim=True) + means.square().sum(dim=1)
        rough = squares - 2 * z @ means.T
        # (|z| + |m|)^2 is at most twice the squares; both sides may be off.
        half_digit = torch.finfo(z.dtype).eps / 2
        slack = 4 * (z.shape[1] + 4) * half_digit * squares.amax(dim=1, keepdim=True)
        row, place = (rough <= rough.amin(dim=1, keepdim=True) + slack).nonzero(as_tuple=True)
        if not rough.isfinite().all() or len(row) > MOST_CANDIDATES * len(z):
            return _distances(z, means).min(dim=1)
        apart = (z[row] - means[place]).square().sum(dim=1).sqrt()
        nearest = apart.new_full((len(z),), torch.inf).scatter_reduce(0, row, apart, "amin")
        first = torch.where(apart == nearest[row], place, len(means))
        places = place.new_full((len(z),), len(means)).scatter_reduce(0, row, first, "amin")
        return nearest, places


def _distances(z: Tensor, means: Tensor) -> Tensor:
    """Return all distances by differences, not products: near a mean those would cancel."""
    return torch.cdist(z, means, compute_mode="donot_use_mm_for_euclid_dist")


Labelled = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives features ``[rows, features]`` and class numbers ``[rows]`` in blocks; again and again."""


def fit_gaussians(features: Tensor, labels: Tensor) -> ClassGaussians:
    """Return the maximum-likelihood Gaussians of labelled features.

    Args:
        features: Shape ``[rows, features]``.
        labels: Their class numbers, shape ``[rows]``; classes without a row have no mean.

    Raises:
        InvalidArgument: If there is no row.
    """
    if not len(labels):
        raise InvalidArgument("Expected labelled rows to fit to, got none.")
    return fit_streamed_gaussians(lambda: [(features, labels)], int(labels.max()) + 1)


def fit_streamed_gaussians(source: Labelled, classes: int) -> ClassGaussians:
    """Return the same of rows that come in blocks: what is held does not grow with their number.

    Args:
        source: Gives one row or more; it is read twice.
        classes: Above every class number.
    """
    from scipy.linalg import pinvh

    counts, sums = torch.zeros(classes, dtype=torch.long), torch.zeros(())
    for features, labels in source():
        if not sums.ndim:
            sums = torch.zeros(classes, features.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels, features.double())
        counts += labels.bincount(minlength=classes)
    seen = counts > 0
    place = seen.cumsum(0) - 1
    means = sums[seen] / counts[seen][:, None]
    products = means.new_zeros(means.shape[1], means.shape[1])
    for features, labels in source():
        apart = features.double() - means[place[labels]]
        products += apart.T @ apart
    precision = pinvh((products / counts.sum()).numpy(), check_finite=False)
    return ClassGaussians(means, torch.from_numpy(precision))
