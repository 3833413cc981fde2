"""Mahalanobis distance in the space of the last features (Lee et al., NeurIPS 2018).

The plain form: class means and one tied covariance of a labelled ID set, without input
perturbation and without the features of earlier stages.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradscore.errors import InvalidArgument, RunError
from gradscore.scores.block import Block
from gradscore.scores.columns import require_closed_form
from gradscore.scores.question import Method, Needs, Question

CHUNK_ENTRIES = 1 << 22
"""Entries of the table of differences worked on at once."""


@dataclass(frozen=True)
class ClassGaussians:
    """One Gaussian a class, all with the same covariance.

    Attributes:
        means: Shape ``[known classes, in_features]``, float64.
        precision: Inverse of the tied covariance (its pseudo-inverse where it is singular),
            shape ``[in_features, in_features]``, float64.
    """

    means: Tensor
    precision: Tensor

    def score(self, features: Tensor) -> Tensor:
        """Return the largest ``-1/2 (z - mu)^T P (z - mu)`` over the classes, shape ``[batch]``.

        Args:
            features: Shape ``[batch, in_features]``.
        """
        # P = R^T R turns the distance into a Euclidean one.
        values, vectors = torch.linalg.eigh(self.precision)
        root = vectors * values.clamp_min(0).sqrt()
        z, means = features.double() @ root, self.means @ root
        step = max(1, CHUNK_ENTRIES // max(1, means.numel()))
        parts = [
            (part[:, None] - means).square_().sum(dim=2).amin(dim=1) for part in z.split(step)
        ]
        return -0.5 * torch.cat(parts)


def fit_gaussians(features: list[Tensor], labels: list[Tensor], classes: int) -> ClassGaussians:
    """Return the maximum-likelihood Gaussians of labelled features.

    Args:
        features: Blocks ``[rows, in_features]``.
        labels: Their class numbers ``[rows]``, all in ``0 .. classes - 1``.
        classes: Number of classes; those without a row are left out.

    Raises:
        InvalidArgument: If there is no row.
    """
    if not sum(map(len, labels)):
        raise InvalidArgument("Expected labelled rows to fit to, got none.")
    width = features[0].shape[1]
    sums = torch.zeros(classes, width, dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.float64)
    for x, y in zip(features, labels, strict=True):
        sums.index_add_(0, y, x.double())
        counts += torch.bincount(y, minlength=classes)
    means = sums / counts.clamp_min(1)[:, None]
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for x, y in zip(features, labels, strict=True):
        centred = x.double() - means[y]
        scatter += centred.T @ centred
    covariance = scatter / counts.sum()
    return ClassGaussians(means[counts > 0], torch.linalg.pinv(covariance, hermitian=True))


def _plan(question: Question, run: Any) -> Needs:
    require_closed_form(question, run)
    if _fit_set(question) not in run.sets:
        raise InvalidArgument(
            f"Unknown set {_fit_set(question)!r} to fit to; the run holds: {', '.join(run.sets)}."
        )
    return Needs(("features",))


def _fit_set(question: Question) -> str:
    """Return the ID set, also where a set of noise follows that another method needs."""
    return question.fit.split(",")[0]


def _fit(question: Question, run: Any) -> ClassGaussians:
    features, labels = [], []
    for block in run.blocks(_fit_set(question), fields=("features", "label")):
        known = torch.as_tensor(block["label"]) >= 0
        features.append(torch.as_tensor(block["features"])[known])
        labels.append(torch.as_tensor(block["label"])[known])
    if not any(map(len, labels)):
        raise RunError(
            f"Method {question.method} learns from labels, but no row of set {question.fit!r} has "
            "one; give a list with labels to `gradscore extract --data`."
        )
    if not all(x.isfinite().all() for x in features):
        raise RunError(f"Expected finite features in set {question.fit!r}, got others.")
    return fit_gaussians(features, labels, run.info.classes)


def _mahalanobis(question: Question, block: Block, state: ClassGaussians) -> Tensor:
    return state.score(block.features)


MAHALANOBIS = Method(
    "mahalanobis",
    "Minus half the squared Mahalanobis distance of the last features to the nearest class.",
    plan=_plan,
    score=_mahalanobis,
    options={"fit": None},
    required=("fit",),
    fit=_fit,
)
