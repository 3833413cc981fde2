"""Whether kernels that Triton compiles can run, without importing Triton."""

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

from gradscore.errors import GradScoreWarning, reason_of

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What kernels read; they add in float32."""


def obstacle(tensors: Sequence[Tensor]) -> str | None:
    """Return why Triton cannot serve ``tensors``, or None.

    ``TRITON_INTERPRET=1`` in the environment lets Triton's interpreter serve a CPU.
    """
    if find_spec("triton") is None:
        return "the package triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for tensor in tensors:
        if not tensor.is_cuda and not interpreted:
            return f"it runs on CUDA, got a tensor on {tensor.device}"
        if tensor.dtype not in DTYPES:
            return f"it takes float16, bfloat16 and float32, got {tensor.dtype}"
    return None


def launches(trial: Callable[[], object], device: torch.device, instead: str) -> bool:
    """Return whether a launch succeeds; if not, warn of what stood in its way.

    Args:
        trial: Launches a kernel on little data.
        device: Where.
        instead: The sentence that says who computes instead.
    """
    try:
        trial()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler, an assembler or a header is missing, a folder full
        told = f"Expected triton to build its kernels for {device}, got: {reason_of(error)} "
        warnings.warn(told + instead, GradScoreWarning, stacklevel=3)
        return False
    return True


def current(device: torch.device) -> AbstractContextManager:
    """Return the context in which Triton launches on ``device``, else on the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
