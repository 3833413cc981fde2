"""Launch the closed form's kernel: tile sizes, strides, grid. Settings must have been checked."""

import math
from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradscore.deviation import NEAR_ONE_HOT, NEAR_UNIFORM
from gradscore.kernels.closed_form import closed_form_kernel
from gradscore.kernels.powers import kind_of

TILE = 4096
"""Entries that a program reading logits holds at once: 32 a thread with 4 warps."""

HEAD_TILE = {"ROWS": 64, "FEATURE_BLOCK": 32, "CLASS_BLOCK": 64}
"""Tile of a program multiplying with the head: what the products of both operands' types fit."""


def from_logits(
    features: Tensor, logits: Tensor, *, p: float, temperature: float, target: str
) -> dict[str, Tensor]:
    """Return ``score``, ``feature_norm`` and ``deviation_norm``, each ``[batch]`` in float32.

    Args:
        features: Shape ``[batch, in_features]``, float16, bfloat16 or float32, any strides.
        logits: Shape ``[batch, classes]``, likewise.
        p: Order of the norm; below 1 the kernel works in float64.
        temperature: Softmax temperature ``T``.
        target: ``uniform`` or ``one-hot``.
    """
    feature_block = min(TILE, triton.next_power_of_2(features.shape[1]))
    class_block = min(TILE, triton.next_power_of_2(logits.shape[1]))
    tile = {
        "ROWS": max(1, min(64, TILE // max(feature_block, class_block))),
        "FEATURE_BLOCK": feature_block,
        "CLASS_BLOCK": class_block,
    }
    result = _launch(features, logits, None, None, logits.shape[1], p, temperature, target, tile)
    return {name: result[name] for name in ("score", "feature_norm", "deviation_norm")}


def from_head(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    p: float,
    temperature: float,
    target: str,
) -> dict[str, Tensor]:
    """Return what :func:`from_logits` does, and ``predicted``, ``max_logit`` and ``energy``.

    Args:
        features: Shape ``[batch, in_features]``, float16, bfloat16 or float32, any strides.
        weight: The last layer's, shape ``[classes, in_features]``, in the type of the features.
        bias: Shape ``[classes]``, contiguous, or None.
        p: Order of the norm; below 1 norms are computed in float64, the logits in float32.
        temperature: Softmax temperature ``T``.
        target: ``uniform`` or ``one-hot``.
    """
    return _launch(features, None, weight, bias, len(weight), p, temperature, target, HEAD_TILE)


def _launch(
    features: Tensor,
    logits: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    classes: int,
    p: float,
    temperature: float,
    target: str,
    tile: dict[str, int],
) -> dict[str, Tensor]:
    rows, in_features = features.shape
    single = ("score", "feature_norm", "deviation_norm", "max_logit", "energy")
    result = {name: features.new_empty(rows, dtype=torch.float32) for name in single}
    result["predicted"] = features.new_empty(rows, dtype=torch.int64)
    if rows == 0:
        return result
    # A pointer that the compiled kernel never follows still needs some tensor behind it.
    f, w = (features if given is None else given for given in (logits, weight))
    launch = closed_form_kernel[(triton.cdiv(rows, tile["ROWS"]),)]
    # Triton launches on the current device, which need not be the one that holds the tensors.
    with torch.cuda.device(features.device) if features.is_cuda else nullcontext():
        launch(
            features,
            *features.stride(),
            f,
            *f.stride(),
            w,
            *w.stride(),
            features if bias is None else bias,
            result["score"],
            result["feature_norm"],
            result["deviation_norm"],
            result["predicted"],
            result["max_logit"],
            result["energy"],
            rows,
            in_features,
            classes,
            p if p != math.inf else 0.0,
            temperature,
            _near_bound(p, classes, target),
            KIND=kind_of(p),
            ONE_HOT=target == "one-hot",
            TYPE=tl.float64 if p < 1 else tl.float32,
            FROM_HEAD=weight is not None,
            HAS_BIAS=bias is not None,
            **tile,
            num_warps=4,
            enable_fp_fusion=True,
        )
    return result


def try_on(device: torch.device) -> None:
    """Launch the kernel on one row, which raises whatever stands in its way on ``device``."""
    one = torch.ones(1, 1, device=device)
    from_logits(one, one, p=1.0, temperature=1.0, target="uniform")


def _near_bound(p: float, classes: int, target: str) -> float:
    """Return the V (uniform), or share of the others (one-hot), too small for float32."""
    if target == "one-hot":
        return NEAR_ONE_HOT
    bound = math.log(NEAR_UNIFORM[torch.float32]) + math.log(classes) / p
    return math.exp(min(bound, math.log(torch.finfo(torch.float32).max) - 1))
