"""The closed form on CUDA: whether Triton can serve, and the launch of its kernel.

Triton is imported only where a kernel is launched. ``TRITON_INTERPRET=1`` in the environment runs
the kernels on a CPU.
"""

import math
from functools import cache

import torch
from torch import Tensor

from gradscore.closed_form.checks import check_backend
from gradscore.errors import InvalidArgument
from gradscore.kernels import current, launches, obstacle

TILE = 4096
"""Entries that a program reading logits holds at once: 32 a thread with 4 warps."""

HEAD_ROWS, HEAD_FEATURES, HEAD_CLASSES = 64, 32, 64
"""Tile of a program multiplying with the head: what the products of both operands' types fit."""

ONE_TILE = 128
"""Most classes of a head whose logits a program keeps, in place of multiplying twice."""

NEAR_UNIFORM = 0.05
"""Below this mean deviation of ``C softmax`` from 1, subtracting the 1 in float32 leaves too few
digits: the norm is off by a few units times ``1 + 1/M``, with ``M`` the deviations' power mean."""

NEAR_ONE_HOT = 1e-30
"""Below this share of all other classes together, float32 comes close to its smallest number."""


def use_triton(backend: str, *tensors: Tensor) -> bool:
    """Return whether the Triton kernels shall serve these inputs.

    Args:
        backend: ``torch``, ``numba``, ``triton``, or ``auto``: triton for CUDA tensors wherever
            it can run, which is tried once a device, and told once where it cannot.
        tensors: The inputs, all on one device.

    Returns:
        True for triton.

    Raises:
        InvalidArgument: If ``backend`` is unknown, or is ``triton`` where that cannot run.
    """
    check_backend(backend)
    if backend in ("torch", "numba"):
        return False
    if backend == "auto" and not all(tensor.is_cuda for tensor in tensors):
        return False
    reason = obstacle(tensors)
    if backend == "triton":
        if reason:
            raise InvalidArgument(f"Expected inputs that backend 'triton' can serve: {reason}.")
        return True
    return not reason and _runs_on(tensors[0].device)


@cache
def _runs_on(device: torch.device) -> bool:
    """Return whether triton launches kernels on a CUDA device, and warn if it does not."""
    instead = "Scores are computed by torch, as with backend 'torch'."
    return launches(lambda: _launch_one_row(device), device, instead)


def kind_of(p: float) -> int:
    """Return which of the kernel's four kinds of order ``p`` is."""
    return {1.0: 0, 2.0: 1, math.inf: 2}.get(p, 3)


def from_logits(
    features: Tensor, logits: Tensor, *, p: float, temperature: float, target: str
) -> Tensor:
    """Return the scores of rows, shape ``[batch]``, float32. Settings must have been checked.

    Args:
        features: Shape ``[batch, in_features]``, float16, bfloat16 or float32, any strides.
        logits: Shape ``[batch, classes]``, likewise.
        p: Order of the norm; below 1 the kernel works in float64.
        temperature: Softmax temperature ``T``.
        target: ``uniform`` or ``one-hot``.
    """
    tile = logits_tile(features.shape[1], logits.shape[1])
    return _launch(features, logits, None, None, tile, p, temperature, target)


def logits_tile(in_features: int, classes: int) -> dict[str, int]:
    """Return the tile of a program that reads features and logits, as arguments of the kernel."""
    feature_block, class_block = (min(TILE, _power_of_2(n)) for n in (in_features, classes))
    rows = max(1, min(64, TILE // max(feature_block, class_block)))
    return {"ROWS": rows, "FEATURE_BLOCK": feature_block, "CLASS_BLOCK": class_block}


def head_tile(classes: int) -> dict[str, int]:
    """Return the tile of a program that makes logits from features, as arguments of the kernel."""
    block = max(16, _power_of_2(classes)) if classes <= ONE_TILE else HEAD_CLASSES
    return {"ROWS": HEAD_ROWS, "FEATURE_BLOCK": HEAD_FEATURES, "CLASS_BLOCK": block}


def _power_of_2(size: int) -> int:
    """Return the smallest power of 2 that is not below ``size``."""
    return 1 << (size - 1).bit_length()


def from_head(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    p: float,
    temperature: float,
    target: str,
) -> Tensor:
    """Return what :func:`from_logits` does, from the head's parameters.

    Args:
        features: Shape ``[batch, in_features]``, float16, bfloat16 or float32, any strides.
        weight: The last layer's, shape ``[classes, in_features]``, in the type of the features.
        bias: Shape ``[classes]``, contiguous, or None.
        p: Order of the norm; below 1 norms are computed in float64, the logits in float32.
        temperature: Softmax temperature ``T``.
        target: ``uniform`` or ``one-hot``.
    """
    tile = head_tile(weight.shape[0])
    return _launch(features, None, weight, bias, tile, p, temperature, target)


def _launch(
    features: Tensor,
    logits: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    tile: dict[str, int],
    p: float,
    temperature: float,
    target: str,
) -> Tensor:
    import triton.language as tl

    from gradscore.closed_form.triton_kernels import closed_form_kernel

    rows, in_features = features.shape
    classes = logits.shape[1] if weight is None else weight.shape[0]
    score = features.new_empty(rows, dtype=torch.float32)
    if rows == 0:
        return score
    # A pointer that the compiled kernel never follows still needs some tensor behind it.
    f, w = (features if given is None else given for given in (logits, weight))
    launch = closed_form_kernel[(math.ceil(rows / tile["ROWS"]),)]
    # The current device need not be the one that holds the tensors.
    with current(features.device):
        launch(
            features,
            *features.stride(),
            f,
            *f.stride(),
            w,
            *w.stride(),
            features if bias is None else bias,
            score,
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
    return score


def _launch_one_row(device: torch.device) -> None:
    """Launch the kernel on one row, which raises whatever stands in its way on ``device``."""
    one = torch.ones(1, 1, device=device)
    from_logits(one, one, p=1.0, temperature=1.0, target="uniform")


def _near_bound(p: float, classes: int, target: str) -> float:
    """Return the V (uniform), or share of the others (one-hot), too small for float32."""
    if target == "one-hot":
        return NEAR_ONE_HOT
    bound = math.log(NEAR_UNIFORM) + math.log(classes) / p
    return math.exp(min(bound, math.log(torch.finfo(torch.float32).max) - 1))
