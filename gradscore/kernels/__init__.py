"""The closed form as Triton kernels, for CUDA. The only place that imports triton, and lazily.

Three storeys: a kernel (a jitted function over tiles), its launcher (shapes, strides, grid), and
the public functions of :mod:`gradscore.last_layer` and :mod:`gradscore.linear_head`, whose results
it reproduces. ``TRITON_INTERPRET=1`` in the environment runs the kernels on a CPU.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from gradscore.errors import InvalidArgument

BACKENDS = ("auto", "torch", "triton")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def use_triton(backend: str, *tensors: Tensor) -> bool:
    """Return whether the Triton kernels shall serve these inputs.

    Args:
        backend: ``torch``, ``triton``, or ``auto``: triton wherever it can run.
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
    if backend == "triton" and obstacle:
        raise InvalidArgument(f"Expected inputs that backend 'triton' can serve: {obstacle}.")
    return not obstacle and (backend == "triton" or all(t.is_cuda for t in tensors))


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
