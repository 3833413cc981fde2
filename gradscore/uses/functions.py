"""What the recorder must know of single functions of torch."""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def _getter(name: str) -> Callable[..., Any]:
    return getattr(Tensor, name).__get__


PASSIVE = frozenset(
    {
        *(_getter(n) for n in ("shape", "ndim", "device", "dtype", "is_cuda", "requires_grad")),
        *(_getter(n) for n in ("layout", "is_sparse", "is_quantized", "is_nested", "is_meta")),
        *(_getter(n) for n in ("is_leaf", "grad_fn", "itemsize", "nbytes", "is_mkldnn")),
        *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.stride, Tensor.is_contiguous),
        *(Tensor.is_floating_point, Tensor.is_complex, Tensor.__len__, Tensor.element_size),
        *(Tensor.storage_offset, Tensor.nelement, Tensor.get_device, Tensor.ndimension),
        *(torch.numel, torch.is_floating_point, torch.is_complex, torch.is_tensor),
    }
)
"""Functions that only look at a tensor's outside."""

UNRELATED = frozenset(
    {
        *(Tensor.type_as, Tensor.to, Tensor.new_zeros, Tensor.new_ones, Tensor.new_tensor),
        *(Tensor.new_empty, Tensor.new_full, torch.zeros_like, torch.ones_like),
        *(torch.empty_like, torch.full_like, torch.rand_like, torch.randn_like),
        *(Tensor.reshape_as, Tensor.view_as, torch.result_type, torch.promote_types),
    }
)
"""Functions of two tensors whose result is a view or copy of the first, or of neither."""

EXPANSIONS = frozenset(
    {
        *(Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to),
        *(Tensor.repeat, torch.tile, Tensor.tile),
    }
)
"""Functions that spread a tensor over a larger shape, such as a class token over the batch."""

DROPOUTS = frozenset(
    {
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout),
        *(F.feature_alpha_dropout, torch.dropout, torch.alpha_dropout, torch.feature_dropout),
    }
)
BATCH_NORMS = {F.batch_norm: 5, torch.batch_norm: 5}
"""Batch norms and the position of their argument ``training``."""
GUARDED = frozenset({*DROPOUTS, *BATCH_NORMS})

_ELEMENTWISE = (
    *(torch.relu, F.relu, F.relu_, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.silu),
    *(F.gelu, F.hardswish, F.hardsigmoid, F.sigmoid, torch.sigmoid, Tensor.sigmoid, F.mish),
    *(
        Tensor.sigmoid_,
        F.leaky_relu,
        F.elu,
        F.hardtanh,
        F.hardtanh_,
        torch.tanh,
        F.tanh,
        F.softplus,
    ),
    *(Tensor.add, Tensor.add_, torch.add, Tensor.mul, torch.mul, Tensor.mul_, Tensor.sub),
    *(Tensor.div, F.dropout, F.dropout2d, Tensor.contiguous, Tensor.clone, Tensor.float),
)
_POOLS = (
    *(F.avg_pool2d, F.max_pool2d, torch.max_pool2d, F.adaptive_avg_pool2d, F.interpolate),
    *(F.adaptive_max_pool2d, F.pad, F.local_response_norm),
)
_LAYERS = (
    *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.linear),
    *(F.batch_norm, F.group_norm, F.instance_norm),
)
BATCH_FIRST = frozenset({*_ELEMENTWISE, *_POOLS, *_LAYERS})
"""Functions after which a batch-first tensor is batch-first again, whatever their arguments."""


def keeps_batch_first(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> bool:
    """Say whether a call surely leaves the batch in axis 0 of its result, one row a sample."""
    if function in BATCH_FIRST:
        return True
    if function in (torch.flatten, Tensor.flatten):
        start = args[1] if len(args) > 1 else kwargs.get("start_dim", 0)
        return start >= 1
    if function in (torch.cat, torch.mean, Tensor.mean):
        dims = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        dims = dims if isinstance(dims, (list, tuple)) else (dims,)
        first = next((a for a in (args[0] if function is torch.cat else args)), None)
        ndim = first.ndim if isinstance(first, Tensor) else 0
        return bool(dims) and all(isinstance(d, int) and d % max(1, ndim) >= 1 for d in dims)
    return False


def spreads(
    function: Callable[..., Any], args: tuple[Any, ...], result: Tensor, batch: int
) -> bool:
    """Say whether a call may have spread a parameter over the batch, as axis 0 of its result."""
    source = args[0]
    grown = source.ndim < result.ndim or source.shape[0] == 1
    return batch > 1 and result.ndim > 0 and result.shape[0] == batch and grown


def is_in_place(function: Callable[..., Any]) -> bool:
    """Say whether a function changes its first argument, by torch's convention of names."""
    name = getattr(function, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


COMPOSITES = frozenset({F.multi_head_attention_forward})
"""Functions written in Python that use several parameters: they are entered, not recorded."""


@functools.cache
def entered(function: types.FunctionType) -> types.FunctionType:
    """Return a copy of a composite function that does not hand itself to the function mode.

    The functions that it calls still do.
    """
    never = {
        name: lambda *_: False
        for name in (
            "has_torch_function",
            "has_torch_function_unary",
            "has_torch_function_variadic",
        )
    }
    copy = types.FunctionType(
        function.__code__,
        function.__globals__ | never,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
