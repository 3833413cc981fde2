"""Scores that reshape the features before the last layer: ReAct, ASH and SCALE.

Each is the energy of the logits that the last layer gives for the reshaped features.
"""

import torch
from torch import Tensor

from gradscore.methods.moments import percentile
from gradscore.methods.rows import Fit, LastLayer, Rows, Source, check_fit_size

REACT_PERCENTILE, ASH_PERCENTILE, SCALE_PERCENTILE = 90.0, 90.0, 85.0
"""The papers' own, on ImageNet."""


def fit_react(source: Source, *, percent: float = REACT_PERCENTILE) -> Fit:
    """Learn where to clip: a percentile of all features of all rows.

    Returns:
        ``clip``, and ``count``.

    Raises:
        InvalidArgument: If there are too few rows.
    """
    count = sum(len(rows) for rows in source())
    check_fit_size(count)
    limit = percentile(lambda: (rows.features for rows in source()), percent)
    return {"clip": torch.tensor(limit, dtype=torch.float64), "count": torch.tensor(count)}


def react(rows: Rows, fit: Fit, head: LastLayer) -> Tensor:
    """Return the energy of clipped features (Sun, Guo & Li, NeurIPS 2021), ``[rows]``, float64."""
    return _energy(rows.features.double().minimum(fit["clip"]), head)


def ash(rows: Rows, head: LastLayer, *, percent: float = ASH_PERCENTILE) -> Tensor:
    """Return ASH-S (Djurisic et al., ICLR 2023): prune the small features, scale up the others.

    Args:
        rows: Features.
        head: The last layer.
        percent: Share of each row's features that is set to 0, the smallest first.

    Returns:
        Shape ``[rows]``, float64.
    """
    x = rows.features.double()
    largest, places = x.topk(_kept(x, percent), dim=1)
    pruned = torch.zeros_like(x).scatter(1, places, largest)
    return _energy(pruned * _sharpening(x, largest), head)


def scale(rows: Rows, head: LastLayer, *, percent: float = SCALE_PERCENTILE) -> Tensor:
    """Return SCALE (Xu et al., ICLR 2024): scale all features as ASH-S does, prune none.

    Args:
        rows: Features.
        head: The last layer.
        percent: Share of each row's features that is left out of the divisor.

    Returns:
        Shape ``[rows]``, float64.
    """
    x = rows.features.double()
    largest = x.topk(_kept(x, percent), dim=1).values
    return _energy(x * _sharpening(x, largest), head)


def _kept(features: Tensor, percent: float) -> int:
    """Return how many features of a row are kept, at least one."""
    width = features.shape[1]
    return max(1, width - round(width * percent / 100))


def _sharpening(features: Tensor, largest: Tensor) -> Tensor:
    """Return ``exp(sum of all / sum of the largest)``; 1 where the largest are not positive."""
    whole, part = (x.sum(dim=1, keepdim=True) for x in (features, largest))
    return torch.where(part > 0, whole / part.clamp_min(torch.finfo(part.dtype).tiny), 0).exp()


def _energy(features: Tensor, head: LastLayer) -> Tensor:
    return head(features).logsumexp(dim=1)
