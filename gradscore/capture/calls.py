"""Calls of torch functions: their arguments, and what is recorded of them."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradscore.errors import ModelError
from gradscore.graph import Edge, is_differentiable
from gradscore.rules import Rule, signature

Slot = tuple[int | str, ...]
"""Where an argument stands: its position or keyword, then its index in a list, if it is in one."""


def tensors_in(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments and in lists of tensors among them."""
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for entry in value:
                if isinstance(entry, Tensor):
                    yield entry


@functools.lru_cache(1024)
def _slot(key: int | str) -> Slot:
    """Return the slot of an argument itself: one object for all calls."""
    return (key,)


def slots_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Slot, Tensor]]:
    """Return every tensor among arguments, and in lists among them, with its slot."""
    return tensors_and_others(args, kwargs)[0]


def tensors_and_others(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[tuple[Slot, Tensor]], list[Any]]:
    """Return tensors as :func:`slots_of` does, and arguments that are neither tensor nor float."""
    found: list[tuple[Slot, Tensor]] = []
    others: list[Any] = []
    for key, value in (*enumerate(args), *kwargs.items()) if kwargs else enumerate(args):
        if isinstance(value, Tensor):
            found.append((_slot(key), value))
        elif isinstance(value, (list, tuple)):
            others.append(value)
            for index, entry in enumerate(value):
                if isinstance(entry, Tensor):
                    found.append(((key, index), entry))
        elif not isinstance(value, float):
            others.append(value)
    return found, others


class Arguments:
    """Positional and keyword arguments of one call of ``function``.

    Args:
        function: The function.
        args: Positional arguments.
        kwargs: Keyword arguments.
        tensors: Every tensor with its slot, as :func:`slots_of` gives them.
    """

    __slots__ = ("args", "function", "kwargs", "tensors")

    def __init__(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        tensors: list[tuple[Slot, Tensor]] | None = None,
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.tensors = slots_of(args, kwargs) if tensors is None else tensors

    @property
    def first(self) -> Slot:
        """Slot of what the call is about, and changes if it works in place."""
        return (0,) if self.args else ("input" if "input" in self.kwargs else "self",)

    def name(self, slot: Slot) -> str:
        """Return a slot's name: ``weight``, ``operands[1]``, or its position if unknown."""
        return _name(self.function, slot)

    def named(self) -> dict[str, Any]:
        """Return all arguments by name; lists stay whole, and their tensors are named besides."""
        names = _positional_names(self.function, len(self.args))
        values = dict(zip(names, self.args, strict=True))
        values.update(self.kwargs)
        for slot, value in self.tensors:
            if len(slot) > 1:
                values[self.name(slot)] = value
        return values

    def replaced(self, values: Mapping[Slot, Tensor]) -> "Arguments":
        """Return the arguments with the tensors of some slots replaced."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for slot, value in values.items():
            whole: Any = kwargs if slot[0].__class__ is str else args
            if len(slot) == 1:
                whole[slot[0]] = value
            else:
                entries = list(whole[slot[0]])
                entries[slot[1]] = value
                whole[slot[0]] = type(whole[slot[0]])(entries)
        tensors = [(slot, values.get(slot, tensor)) for slot, tensor in self.tensors]
        return Arguments(self.function, args, kwargs, tensors)

    def call(self) -> Any:
        """Call the function."""
        return self.function(*self.args, **self.kwargs)


@functools.cache
def _positional_names(function: Callable[..., Any], count: int) -> tuple[str, ...]:
    return tuple(_name(function, (key,)) for key in range(count))


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


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what a call is about, which torch names ``input`` or ``self``."""
    return args[0] if args else kwargs.get("input", kwargs.get("self"))


def fixed_arguments(others: Sequence[Any]) -> tuple[Any, ...]:
    """Return what can be compared of arguments that are neither tensor nor float.

    These are whole numbers, such as axes, sizes and indices, and names.
    """
    return tuple([x if x.__class__ in _COMPARED else _fixed(x) for x in others])


_COMPARED = frozenset({int, bool, str})


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


@dataclass(slots=True)
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
        versions = self.versions
        for slot, tensor in self.arguments.tensors:
            if slot in versions and tensor._version != versions[slot]:
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
