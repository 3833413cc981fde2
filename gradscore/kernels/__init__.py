"""The closed form as Triton kernels, for CUDA. The only place that imports triton, and lazily.

Three storeys: a kernel (a jitted function over tiles), its launcher (shapes, strides, grid), and
the public functions of :mod:`gradscore.last_layer` and :mod:`gradscore.linear_head`, whose results
it reproduces. ``TRITON_INTERPRET=1`` in the environment runs the kernels on a CPU.
"""

import os
import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from gradscore.errors import GradScoreWarning, InvalidArgument

BACKENDS = ("auto", "torch", "triton")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def use_triton(backend: str, *tensors: Tensor) -> bool:
    """Return whether the Triton kernels shall serve these inputs.

    Args:
        backend: ``torch``, ``triton``, or ``auto``: triton for CUDA tensors wherever it can run,
            which is tried once a device, and told once where it cannot.
        tensors: The inputs, all on one device.

    Returns:
        True for triton.

    Raises:
        InvalidArgument: If ``backend`` is unknown, or is ``triton`` where that cannot run.
    """
    if backend not in BACKENDS:
        raise InvalidArgument(f"Expected backend {', '.join(BACKENDS)}, got {backend!r}.")
    if backend == "torch":
        return False
    obstacle = _obstacle(tensors)
    if backend == "triton":
        if obstacle:
            raise InvalidArgument(f"Expected inputs that backend 'triton' can serve: {obstacle}.")
        return True
    on_cuda = all(tensor.is_cuda for tensor in tensors)
    return not obstacle and on_cuda and _runs_on(tensors[0].device)


@cache
def _runs_on(device: torch.device) -> bool:
    """Return whether triton launches kernels on a CUDA device, and warn if it does not."""
    from gradscore.kernels.launch import try_on

    try:
        try_on(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler, an assembler or a header is missing, a folder full
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(
            f"Expected triton to build its kernels for {device}, got: {reason} Scores are "
            "computed by torch, as with backend 'torch'.",
            GradScoreWarning,
            stacklevel=2,
        )
        return False
    return True


def _obstacle(tensors: tuple[Tensor, ...]) -> str | None:
    """Return why triton cannot serve ``tensors``, or None."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for tensor in tensors:
        if not tensor.is_cuda and not interpreted:
            return f"it runs on CUDA, got a tensor on {tensor.device}"
        if tensor.dtype not in DTYPES:
            return f"it takes float16, bfloat16 and float32, got {tensor.dtype}"
    return None
