"""ViM: the part of the features outside the ID inputs' principal subspace, as one more logit."""

import torch
from torch import Tensor

from gradscore.errors import InvalidArgument
from gradscore.methods.rows import Fit, LastLayer, Rows, Source, check_fit_size

PAPERS = ((2048, 1000), (768, 512))
"""The paper's dimensions: of 2,048 features 1,000, of 768 features 512."""


def default_dimension(features: int) -> int:
    """Return the paper's dimension of the principal subspace; half of fewer features.

    >>> [default_dimension(features) for features in (2048, 1280, 64)]
    [1000, 512, 32]
    """
    return next((d for least, d in PAPERS if features >= least), features // 2)


def fit_vim(source: Source, head: LastLayer, *, dimension: int | None = None) -> Fit:
    """Learn the residual subspace, and what its norm counts beside the logits.

    Args:
        source: ID rows; no labels are needed.
        head: The last layer, whose pseudo-inverse gives the origin.
        dimension: Of the principal subspace; by default the paper's, and at most half as many as
            there are rows: where it holds all of them, nothing is left to scale the residual by.

    Returns:
        ``origin``, ``residual`` (orthonormal columns), ``alpha``, and ``count``.

    Raises:
        InvalidArgument: If there are too few rows, or the dimension leaves no residual.
    """
    width = head.weight.shape[1]
    if dimension is not None and not 0 <= dimension < width:
        raise InvalidArgument(f"Expected a dimension of 0 to {width - 1}, got {dimension}.")
    origin = -(torch.linalg.pinv(head.weight.double()) @ head.bias.double())
    products, count = origin.new_zeros(width, width), 0
    for rows in source():
        x = rows.features.double() - origin
        products += x.T @ x
        count += len(rows)
    check_fit_size(count)
    if dimension is None:
        dimension = min(default_dimension(width), count // 2)
    residual = torch.linalg.eigh(products / count).eigenvectors[:, : width - dimension]
    largest = norms = 0.0
    for rows in source():
        largest += float(rows.logits.double().amax(dim=1).sum())
        norms += float(_residual_norm(rows, origin, residual).sum())
    if not norms > 0:
        raise InvalidArgument(
            f"Expected features outside a subspace of dimension {dimension}, got none; choose "
            "a smaller `dimension`."
        )
    alpha = torch.tensor(largest / norms, dtype=torch.float64)
    count = torch.tensor(count)
    return {"origin": origin, "residual": residual, "alpha": alpha, "count": count}


def vim(rows: Rows, fit: Fit) -> Tensor:
    """Return the energy minus the virtual logit (Wang et al., CVPR 2022), ``[rows]``, float64."""
    virtual = fit["alpha"] * _residual_norm(rows, fit["origin"], fit["residual"])
    return rows.logits.double().logsumexp(dim=1) - virtual


def _residual_norm(rows: Rows, origin: Tensor, residual: Tensor) -> Tensor:
    return ((rows.features.double() - origin) @ residual).norm(dim=1)
