"""Calls of torch functions: their arguments, what is known of the functions, recorded calls."""

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.errors import ModelError
from gradscore.graph import Edge, is_differentiable
from gradscore.rules import Rule, signature

Slot = tuple[int | str, ...]
"""Where an argument stands: its position or keyword, then its index in a list, if it is in one."""


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


def tensors_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments and in lists of tensors among them."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for entry in value:
                if isinstance(entry, Tensor):
                    yield entry


@dataclass
class Arguments:
    """Positional and keyword arguments of one call of ``function``."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def first(self) -> Slot:
        """Slot of what the call is about, and changes if it works in place."""
        return (0,) if self.args else ("input" if "input" in self.kwargs else "self",)

    @functools.cached_property
    def tensors(self) -> tuple[tuple[Slot, Tensor], ...]:
        """Every tensor with its slot."""
        found: list[tuple[Slot, Tensor]] = []
        for key, value in (*enumerate(self.args), *self.kwargs.items()):
            if isinstance(value, Tensor):
                found.append(((key,), value))
            elif isinstance(value, (list, tuple)):
                found += [((key, i), t) for i, t in enumerate(value) if isinstance(t, Tensor)]
        return tuple(found)

    def name(self, slot: Slot) -> str:
        """Return a slot's name: ``weight``, ``operands[1]``, or its position if unknown."""
        return _name(self.function, slot)

    def named(self) -> dict[str, Any]:
        """Return all arguments by name; lists stay whole, and their tensors are named besides."""
        values = {self.name((key,)): value for key, value in enumerate(self.args)}
        values |= self.kwargs
        return values | {self.name(slot): value for slot, value in self.tensors if len(slot) > 1}

    def replaced(self, values: Mapping[Slot, Any]) -> "Arguments":
        """Return the arguments with the values of some slots replaced."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for slot, value in values.items():
            whole: Any = args if isinstance(slot[0], int) else kwargs
            if len(slot) == 1:
                whole[slot[0]] = value
            else:
                entries = list(whole[slot[0]])
                entries[slot[1]] = value
                whole[slot[0]] = type(whole[slot[0]])(entries)
        return Arguments(self.function, tuple(args), kwargs)

    def call(self) -> Any:
        """Call the function."""
        return self.function(*self.args, **self.kwargs)


@functools.cache
def _name(function: Callable[..., Any], slot: Slot) -> str:
    key = slot[0]
    names = signature(function)
    index = f"[{slot[1]}]" if len(slot) > 1 else ""
    if isinstance(key, str):
        return key + index
    variadic = next((i for i, name in enumerate(names) if name.startswith("*")), len(names))
    if variadic < len(names) and key >= variadic:
        return names[variadic][1:] + (index or f"[{key - variadic}]")
    return (names[key] if key < len(names) else str(key)) + index


def is_in_place(function: Callable[..., Any]) -> bool:
    """Say whether a function changes its first argument, by torch's convention of names."""
    # An overload of aten adds its own name: ``add_.Tensor``.
    name = getattr(function, "__name__", "").partition(".")[0]
    return name.endswith("_") and not name.endswith("__")


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


def autocast_type(x: Tensor) -> torch.dtype | None:
    """Return the type that autocast computes in on a tensor's device, ``None`` where it is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def without_memory(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape without memory."""
    return torch.empty_like(tensor, device="meta")


class TracedCall(NamedTuple):
    """A call that took data: what was called, and what it returned.

    Attributes:
        function: The function.
        results: Shape and type of each tensor that it returned.
        fixed: Axes, sizes and other whole numbers that it was called with.
    """

    function: Callable[..., Any]
    results: tuple[tuple[torch.Size, torch.dtype], ...]
    fixed: tuple[Any, ...]


@dataclass
class RecordedCall:
    """A call in which parameters, or tensors derived from parameters alone, met data.

    Attributes:
        arguments: What was passed, parameter arguments replaced by detached aliases.
        parameters: Slot and tensor of every parameter argument: a parameter, or a derived one.
        rules: What serves each parameter argument, ``None`` for the generic rule.
        edges: Where the gradients of its outputs arrive.
        output_shapes: Shapes of its outputs that have a gradient.
        constants: Slots of tensors that hold no samples, such as buffers.
        versions: Version counters of the data, which shall not change before they are read.
        autocast: The type that autocast computed in, ``None`` where it was off.
        expansion: Ordinal of the call among those that may broadcast a parameter over the batch.
    """

    arguments: Arguments
    parameters: tuple[tuple[Slot, Tensor], ...]
    rules: Mapping[Slot, Rule | None]
    edges: tuple[Edge, ...]
    output_shapes: tuple[torch.Size, ...]
    constants: frozenset[Slot]
    versions: Mapping[Slot, int]
    autocast: torch.dtype | None = None
    expansion: int | None = None

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return getattr(self.arguments.function, "__name__", str(self.arguments.function))

    @property
    def data(self) -> dict[Slot, Tensor]:
        """The arguments that hold samples, by slot."""
        others = {slot for slot, _ in self.parameters} | self.constants
        return {slot: tensor for slot, tensor in self.arguments.tensors if slot not in others}

    def check_unchanged(self) -> None:
        """Refuse data that changed in place since the call.

        Raises:
            ModelError: If they did.
        """
        tensors = dict(self.arguments.tensors)
        for slot, version in self.versions.items():
            if tensors[slot]._version != version:
                raise ModelError(
                    f"Expected the inputs of {self.name} to stay as they were, got argument "
                    f"{self.arguments.name(slot)!r} changed in place after the call."
                )

    def free_graph(self) -> None:
        """Free the graph, and the values of data that show nothing of the batch dimension."""
        floating = {
            slot: without_memory(x) for slot, x in self.arguments.tensors if is_differentiable(x)
        }
        self.arguments, self.edges = self.arguments.replaced(floating), ()

    def free(self) -> None:
        """Free the data, once nothing more will be asked of them."""
        self.arguments = Arguments(self.arguments.function, (), {})
        self.edges = ()
