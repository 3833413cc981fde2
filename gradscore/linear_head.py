"""Scores from features and the last layer itself, without the logits of all rows in memory.

The logits are made for some rows at a time, in a block that is reused, and each block is scored
while it is still in cache: the cost is that of the bare matrix product, in constant memory.

On CUDA a narrow head has a better way. The kernel multiplies twice and writes no logits: that adds
``2 m C`` operations a row and saves ``12 C`` bytes of writing and reading. The machines have 10 to
200 operations to a byte, so it is taken up to a few hundred features; above, the blocks.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gradscore.deviation import NARROW
from gradscore.errors import InvalidArgument
from gradscore.kernels import use_triton
from gradscore.last_layer import (
    check_finite,
    check_matrix,
    score_and_factors,
)
from gradscore.norms import check_order
from gradscore.objective import check_target, check_temperature

BLOCK_BYTES = 32 << 20
"""Features or logits at once: enough rows for the product's full speed, few enough for caches."""

BLOCK_ROWS = 768
"""Fewest rows at once, if that many come: each block reads the whole weight again."""

FUSED_FEATURES = 256
"""Most features for which a second product costs less than writing and reading the logits."""


class HeadOutputs(NamedTuple):
    """What one pass over the features gives; each of shape ``[batch]``.

    Attributes:
        score: As :func:`~gradscore.last_layer.last_layer_score`; larger means more ID.
        feature_norm: ``U = |x|_p`` of Eq. 9.
        deviation_norm: ``V``, the norm of the softmax's deviation from its target.
        predicted: The predicted class, the first largest logit; int64.
        max_logit: The largest logit.
        energy: ``T logsumexp(f/T)``, the negated free energy; larger means more ID.
    """

    score: Tensor
    feature_norm: Tensor
    deviation_norm: Tensor
    predicted: Tensor
    max_logit: Tensor
    energy: Tensor


@torch.no_grad()
def head_score(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    p: float = 1.0,
    temperature: float = 1.0,
    target: str = "uniform",
    backend: str = "auto",
) -> Tensor:
    """Return each sample's last-layer score from its features and the layer's parameters.

    Args:
        features: Input ``x`` of the last layer, shape ``[batch, in_features]``.
        weight: Its weight ``W``, shape ``[classes, in_features]``.
        bias: Its bias, shape ``[classes]``, or None.
        p: Order of the norm, positive.
        temperature: Softmax temperature ``T``, positive.
        target: ``uniform`` or ``one-hot``.
        backend: ``torch``, ``triton`` or ``auto``.

    Returns:
        Scores as of :func:`~gradscore.last_layer.last_layer_score`, shape ``[batch]``.

    Raises:
        InvalidArgument: If shapes or types disagree, a setting is out of range, triton cannot
            serve the inputs, or a row's features or logits are not finite.
    """
    _check_head(features, weight, bias)
    how = check_order(p), check_temperature(temperature), check_target(target)
    if _fused(backend, features, weight, bias):
        return _launched(features, weight, bias, *how).score
    score = features.new_empty(len(features), dtype=_raised(features))
    for rows, logits in _logits(features, weight, bias):
        score[rows], _, _ = score_and_factors(features[rows], logits, *how, backend)
    return check_finite(score, "features and logits")


@torch.no_grad()
def head_outputs(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    p: float = 1.0,
    temperature: float = 1.0,
    target: str = "uniform",
    backend: str = "auto",
) -> HeadOutputs:
    """Return score, its factors, predicted class, largest logit and energy of each sample.

    Args:
        features: Input ``x`` of the last layer, shape ``[batch, in_features]``.
        weight: Its weight ``W``, shape ``[classes, in_features]``.
        bias: Its bias, shape ``[classes]``, or None.
        p: Order of the norm, positive.
        temperature: Softmax temperature ``T`` of score and energy, positive.
        target: ``uniform`` or ``one-hot``.
        backend: ``torch``, ``triton`` or ``auto``.

    Returns:
        The outputs, in float64 if the features are, otherwise in float32.

    Raises:
        InvalidArgument: As :func:`head_score`.
    """
    _check_head(features, weight, bias)
    how = check_order(p), check_temperature(temperature), check_target(target)
    if _fused(backend, features, weight, bias):
        return _launched(features, weight, bias, *how)
    empty = features.new_empty(6, len(features), dtype=_raised(features))
    outputs = HeadOutputs(*empty)._replace(predicted=empty[3].to(torch.int64))
    for rows, logits in _logits(features, weight, bias):
        factors = score_and_factors(features[rows], logits, *how, backend)
        outputs.score[rows], outputs.feature_norm[rows], outputs.deviation_norm[rows] = factors
        outputs.max_logit[rows], outputs.predicted[rows] = logits.max(dim=1)
        outputs.energy[rows] = temperature * torch.logsumexp(logits / temperature, dim=1)
    check_finite(outputs.score, "features and logits")
    return outputs


def _logits(
    features: Tensor, weight: Tensor, bias: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows and their logits, in a block that the next rows overwrite."""
    dtype, classes = _raised(features), len(weight)
    narrow = classes <= NARROW
    weight = weight.to(dtype)
    if bias is not None:
        bias = bias.to(dtype)[:, None] if narrow else bias.to(dtype)
    step = BLOCK_BYTES // (max(weight.shape) * dtype.itemsize)
    step = max(1, min(len(features), max(step, BLOCK_ROWS)))
    block = features.new_empty(step * classes, dtype=dtype)
    for start in range(0, len(features), step):
        rows = slice(start, start + step)
        x = features[rows].to(dtype)
        if narrow:
            # The classes go first, as the score wants them; so the product is faster, too.
            logits = _product(weight, x.t(), bias, block).t()
        else:
            logits = _product(x, weight.t(), bias, block)
        yield rows, logits


def _product(left: Tensor, right: Tensor, bias: Tensor | None, block: Tensor) -> Tensor:
    """Return ``left right + bias``, written into ``block``."""
    out = block[: len(left) * right.shape[1]].view(len(left), right.shape[1])
    if bias is None:
        return torch.mm(left, right, out=out)
    return torch.addmm(bias, left, right, out=out)


def _fused(backend: str, *tensors: Tensor | None) -> bool:
    features, *parameters = (tensor for tensor in tensors if tensor is not None)
    able = use_triton(backend, features, *parameters)
    return able and (backend == "triton" or features.shape[1] <= FUSED_FEATURES)


def _launched(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
    temperature: float,
    target: str,
) -> HeadOutputs:
    from gradscore.kernels.launch import from_head

    contiguous = None if bias is None else bias.contiguous()
    how = {"p": p, "temperature": temperature, "target": target}
    result = from_head(features, weight, contiguous, **how)
    check_finite(result["score"], "features and logits")
    return HeadOutputs(**result)


def _raised(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)


def _check_head(features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_matrix(features, "features [batch, in_features]")
    check_matrix(weight, "weight [classes, in_features]")
    fits = weight.shape[1] == features.shape[1] and weight.dtype == features.dtype
    if bias is not None:
        fits = fits and bias.shape == weight.shape[:1] and bias.dtype == features.dtype
    if not fits or not len(weight):
        shapes = [f"{t.dtype} {list(t.shape)}" for t in (features, weight, bias) if t is not None]
        raise InvalidArgument(
            "Expected features [batch, in_features], weight [classes, in_features] and bias "
            f"[classes] of one type, got {', '.join(shapes)}."
        )
