"""What is known of torch's functions: which only look, which write, which take gradients."""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.errors import ModelError
from gradscore.graph import is_differentiable


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

DROPOUTS = frozenset(
    {
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout),
        *(F.feature_alpha_dropout, torch.dropout, torch.alpha_dropout, torch.feature_dropout),
    }
)
BATCH_NORMS = {F.batch_norm: 5, torch.batch_norm: 5}
"""Batch norms and the position of their argument ``training``."""

DERIVATIVES = frozenset(
    {torch.autograd.grad, torch.autograd.backward, Tensor.backward, Tensor.register_hook}
)
"""Calls by which a forward takes gradients of its own, or changes those that pass later."""

COMPOSITES = frozenset({F.multi_head_attention_forward})
"""Functions written in Python that use several parameters: they are entered, not recorded."""

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
_PLACING = _VALUES | _INDEXED | {"embedding", "where"}


class Traits(NamedTuple):
    """What is known of a function before it is called, whatever its arguments.

    Attributes:
        passive: Whether it only looks at a tensor's outside.
        derives: Whether it takes gradients, or changes those that pass later.
        composite: Whether it is entered and not recorded.
        trains: Whether in train mode it is random, or mixes samples.
        in_place: Whether it changes its first argument and is named so.
        writes: Whether it changes its first argument.
        related: Whether values of all its arguments may be in its result.
        indexes: Whether where samples are after it may depend on data.
    """

    passive: bool
    derives: bool
    composite: bool
    trains: bool
    in_place: bool
    writes: bool
    related: bool
    indexes: bool


@functools.lru_cache(1024)
def traits_of(function: Callable[..., Any]) -> Traits:
    """Return what is known of a function, once for all its calls."""
    sets_items, in_place = function is Tensor.__setitem__, is_in_place(function)
    return Traits(
        passive=function in PASSIVE,
        derives=function in DERIVATIVES,
        composite=function in COMPOSITES,
        trains=function in DROPOUTS or function in BATCH_NORMS,
        in_place=in_place,
        writes=in_place or sets_items,
        related=function not in UNRELATED and not sets_items,
        indexes=_name_of(function) in _PLACING,
    )


def is_in_place(function: Callable[..., Any]) -> bool:
    """Say whether a function changes its first argument, by torch's convention of names."""
    name = _name_of(function)
    return name.endswith("_") and not name.endswith("__")


def _name_of(function: Callable[..., Any]) -> str:
    """Return a function's name; an overload of aten adds its own to it: ``add_.Tensor``."""
    return getattr(function, "__name__", "").partition(".")[0]


def indexes_by_data(function: Callable[..., Any], data: Sequence[Tensor]) -> bool:
    """Say whether where the samples are after a call may depend on the values of data.

    Args:
        function: The function called.
        data: The tensors that hold data among its arguments.
    """
    name = _name_of(function)
    if name in _INDEXED:
        return not all(is_differentiable(x) for x in data)
    if name == "embedding":  # a table of data, not of parameters
        return len(data) > 1
    return name in _VALUES or (name == "where" and len(data) == 1)


@functools.cache
def entered(function: types.FunctionType) -> types.FunctionType:
    """Return a copy of a composite function that does not hand itself to the function mode.

    The functions that it calls still do.
    """
    never = {f"has_torch_function{kind}": lambda *_: False for kind in ("", "_unary", "_variadic")}
    copy = types.FunctionType(
        function.__code__,
        function.__globals__ | never,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def refuse_training(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> None:
    """Refuse a call that is random, or that mixes samples, as layers in train mode do."""
    if func in DROPOUTS:
        p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        training = kwargs.get("training", kwargs.get("train", True))
        if p > 0 and (args[2] if len(args) > 2 else training):
            raise ModelError(
                "Expected a model without active dropout, got a call of "
                f"{func.__name__} with p = {p}; call model.eval() first."
            )
    elif func in BATCH_NORMS:
        place = BATCH_NORMS[func]
        if args[place] if len(args) > place else kwargs.get("training", False):
            raise ModelError(
                "Expected batch norm with fixed statistics, got a call that takes them from the "
                "batch; call model.eval() first."
            )
