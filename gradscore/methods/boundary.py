"""fDBD: how far the features are from the boundaries of the predicted class."""

import torch
from torch import Tensor

from gradscore.methods.rows import Fit, LastLayer, Rows, Source, check_fit_size

SMALLEST = 1e-8
"""Least distance from the mean feature."""
SAME = 1e-7
"""Classes whose weights differ by less than this share have no boundary between them."""


def fit_fdbd(source: Source) -> Fit:
    """Learn the mean feature.

    Returns:
        ``mean``, shape ``[features]``, and ``count``.

    Raises:
        InvalidArgument: If there are too few rows.
    """
    count, total = 0, torch.zeros(())
    for rows in source():
        total = total + rows.features.double().sum(dim=0)
        count += len(rows)
    check_fit_size(count)
    return {"mean": total / count, "count": torch.tensor(count)}


def fdbd(rows: Rows, fit: Fit, head: LastLayer) -> Tensor:
    """Return the mean distance to the decision boundaries (Liu & Qin, ICML 2024).

    ``mean over c of |f_y - f_c| / |w_y - w_c|``, divided by the features' distance from the mean
    feature; ``y`` is the predicted class. Classes whose weights are those of ``y`` have no
    boundary and are left out.

    Args:
        rows: Features and logits.
        fit: What :func:`fit_fdbd` learned.
        head: The last layer.

    Returns:
        Shape ``[rows]``, float64.
    """
    logits, weight = rows.logits.double(), head.weight.double()
    largest, predicted = logits.max(dim=1, keepdim=True)
    if torch.compiler.is_compiling():  # a graph has no shape that depends on values
        apart = _distances(weight, predicted[:, 0])
    else:
        classes, place = predicted[:, 0].unique(return_inverse=True)
        apart = _distances(weight, classes)[place]
    boundary = apart > 0
    distances = torch.where(boundary, (largest - logits) / torch.where(boundary, apart, 1), 0)
    mean = distances.sum(dim=1) / boundary.sum(dim=1).clamp_min(1)
    return mean / (rows.features.double() - fit["mean"]).norm(dim=1).clamp_min(SMALLEST)


def _distances(weight: Tensor, classes: Tensor) -> Tensor:
    """Return ``|w_y - w_c|`` for some classes ``y`` and all ``c``, 0 where they are the same."""
    squares = weight.square().sum(dim=1)
    sums = squares[classes][:, None] + squares
    square = sums - 2 * weight[classes] @ weight.T
    return torch.where(square > SAME**2 * sums, square, 0).sqrt()
