"""What the recorder must know of single functions of torch."""

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves


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

DERIVATIVES = frozenset(
    {torch.autograd.grad, torch.autograd.backward, Tensor.backward, Tensor.register_hook}
)
"""Calls by which a forward takes gradients of its own, or changes those that pass later."""

_OUTSIDES = (torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format)
_VALUES = frozenset(
    {
        *("argwhere", "masked_scatter", "masked_scatter_", "masked_select", "nonzero"),
        *("unique", "unique_consecutive"),
    }
)
_INDEXED = frozenset(
    {
        *("__getitem__", "__setitem__", "gather", "index_add", "index_add_", "index_copy"),
        *("index_copy_", "index_fill", "index_fill_", "index_put", "index_put_", "index_reduce"),
        *("index_reduce_", "index_select", "repeat_interleave", "scatter", "scatter_"),
        *("scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "take"),
        *("take_along_dim", "tensor_split"),
    }
)


def moves_by_value(function: Callable[..., Any], data: Sequence[Tensor]) -> bool:
    """Say whether where the samples are after a call may depend on the values of data.

    Args:
        function: The function called.
        data: The tensors that hold data among its arguments.
    """
    name = getattr(function, "__name__", "").partition(".")[0]
    if name in _INDEXED:
        return any(not (x.is_floating_point() or x.is_complex()) for x in data)
    if name == "embedding":  # a table of data, not of parameters
        return len(data) > 1
    return name in _VALUES or (name == "where" and len(data) == 1)


def reads_values(function: Callable[..., Any], result: Any) -> bool:
    """Say whether a call with data may have taken their values out of the tensors.

    Nobody sees what becomes of them there: a number may decide, an array may order the samples.

    Args:
        function: The function called.
        result: What it returned.
    """
    if result is None or isinstance(result, (Tensor, *_OUTSIDES)):
        return False
    if isinstance(result, (tuple, list)):
        return not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
    name = getattr(function, "__name__", "")
    return name != "__get__" and (name == "is_nonzero" or not name.startswith("is_"))


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what a call is about, which torch names ``input`` or ``self``."""
    return args[0] if args else kwargs.get("input", kwargs.get("self"))


def fixed_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the whole numbers, such as axes, sizes and indices, and the names among arguments."""
    values = (*args, *kwargs.values()) if kwargs else args
    return tuple([_fixed(value) for value in values if not isinstance(value, (Tensor, float))])


def _fixed(value: Any) -> Any:
    """Return what can be compared of an argument: of lists, slices and arrays their entries."""
    if isinstance(value, (int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return tuple([_fixed(entry) for entry in value])
    if isinstance(value, slice):
        return _fixed((value.start, value.stop, value.step))
    if hasattr(value, "tobytes"):
        return value.shape, value.tobytes()
    return type(value)


def spreads(source: Tensor, result: Tensor, batch: int) -> bool:
    """Say whether a call may have spread a parameter over the batch, as axis 0 of its result."""
    grown = source.ndim < result.ndim or source.shape[:1] == (1,)
    return batch > 1 and result.shape[:1] == (batch,) and grown


def is_in_place(function: Callable[..., Any]) -> bool:
    """Say whether a function changes its first argument, by torch's convention of names."""
    # An overload of aten adds its own name: ``add_.Tensor``.
    name = getattr(function, "__name__", "").partition(".")[0]
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
