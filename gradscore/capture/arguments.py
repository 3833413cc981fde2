"""The arguments of a call: found by name, replaced by slot."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gradscore.rules import signature

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


@dataclass
class Arguments:
    """Positional and keyword arguments of one call of ``function``."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    _tensors: tuple[tuple[Slot, Tensor], ...] | None = field(default=None, repr=False)

    @property
    def tensors(self) -> tuple[tuple[Slot, Tensor], ...]:
        """Every tensor with its slot."""
        if self._tensors is None:
            self._tensors = self._find_tensors()
        return self._tensors

    @property
    def first(self) -> Slot:
        """Slot of what the call is about, and changes if it works in place."""
        return (0,) if self.args else ("input" if "input" in self.kwargs else "self",)

    def _find_tensors(self) -> tuple[tuple[Slot, Tensor], ...]:
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
