"""Scores by the nearest ID inputs: KNN and NNGuide.

Both keep features of the inputs that they are fitted to, at most :data:`BANK` of them.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from gradscore.errors import InvalidArgument
from gradscore.methods import nearest
from gradscore.methods.rows import Fit, Rows, Source, check_fit_size, drawn_places

BANK = 50_000
"""Most rows that are kept; of more, as many, drawn by a fixed seed."""
NEIGHBOURS = 10
"""Neighbours by default: both papers' for a bank of 1% of ImageNet (1,281 to 12,812 rows)."""
PART = 4096
"""Rows of the bank that are compared at once."""


def fit_knn(source: Source) -> Fit:
    """Keep the direction of each row's features.

    Returns:
        ``bank``, shape ``[kept, features]``, float32; and ``count``, all rows that there were.

    Raises:
        InvalidArgument: If there are too few rows.
    """
    return _bank(source, weighted=False)


def knn(rows: Rows, fit: Fit, *, k: int = NEIGHBOURS) -> Tensor:
    """Return minus the distance to the k-th nearest direction (Sun et al., ICML 2022).

    Args:
        rows: Features.
        fit: What :func:`fit_knn` learned.
        k: Which neighbour.

    Returns:
        -2 to 0, shape ``[rows]``, float64.

    Raises:
        InvalidArgument: If the bank holds fewer than ``k`` rows.
    """
    nearest = _largest_products(rows.features, fit["bank"], k)[:, -1]
    return -(2 - 2 * nearest).clamp_min(0).sqrt()


def fit_nnguide(source: Source) -> Fit:
    """Keep the direction of each row's features, times its energy.

    Returns:
        As :func:`fit_knn`.

    Raises:
        InvalidArgument: If there are too few rows.
    """
    return _bank(source, weighted=True)


def nnguide(rows: Rows, fit: Fit, *, k: int = NEIGHBOURS) -> Tensor:
    """Return the energy times the mean of the k largest guides (Park et al., ICCV 2023).

    A guide is the cosine to a row of the bank, times that row's energy.

    Args:
        rows: Features and logits.
        fit: What :func:`fit_nnguide` learned.
        k: Number of neighbours.

    Returns:
        Shape ``[rows]``, float64.

    Raises:
        InvalidArgument: If the bank holds fewer than ``k`` rows.
    """
    guide = _largest_products(rows.features, fit["bank"], k).mean(dim=1)
    return rows.logits.double().logsumexp(dim=1) * guide


def _bank(source: Source, *, weighted: bool) -> Fit:
    count = sum(len(rows) for rows in source())
    check_fit_size(count)
    places = torch.from_numpy(drawn_places(count, BANK))
    parts, start = [], 0
    for rows in source():
        chosen = rows[places[(places >= start) & (places < start + len(rows))] - start]
        start += len(rows)
        part = normalize(chosen.features.double(), dim=1)
        if weighted:
            part = part * chosen.logits.double().logsumexp(dim=1, keepdim=True)
        parts.append(part.float())
    return {"bank": torch.cat(parts), "count": torch.tensor(count)}


def _largest_products(features: Tensor, bank: Tensor, k: int) -> Tensor:
    """Return the k largest products of each row's direction with the bank, ``[rows, k]``."""
    if not 1 <= k <= len(bank):
        raise InvalidArgument(f"Expected k of 1 to {len(bank)}, the images fitted to, got {k}.")
    directions = normalize(features.double(), dim=1)
    # A graph has neither a number of candidates nor NumPy.
    if not torch.compiler.is_compiling() and nearest.pays(directions, bank, k):
        return nearest.largest_products(directions, bank, k)
    best = directions[:, :0]
    for part in bank.split(PART):
        products = torch.cat([best, directions @ part.double().T], dim=1)
        best = products.topk(min(k, products.shape[1]), dim=1).values
    return best
