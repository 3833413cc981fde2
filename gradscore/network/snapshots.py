"""Where a model can keep something between two forwards, and how that is put back.

Attributes of modules, and what is in containers and plain objects there. Outside of the model,
where its own code keeps something: variables that functions close over, attributes of classes,
global variables. Of these only tensors are put back: anything else may be the caller's own notes.
"""

import dis
import functools
import types
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

CONTAINERS = (dict, list, set, deque)
MOST_ENTRIES = 4096
"""Larger containers hold data rather than what a forward made."""

_FOREIGN = frozenset({"builtins", "gradscore", "logging", "numpy", "threading", "torch"})
"""Packages whose objects and code keep nothing of a forward."""

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), Tensor, nn.Parameter})
_MODULES_OWN = frozenset(vars(nn.Module()))
_REGISTERED = ("_parameters", "_buffers", "_modules")
_ABSENT = object()


class Container:
    """A dictionary, list, set or deque, whose entries are put back.

    Args:
        part: The container.
        outside: Whether it is not the model's, so that only tensors are put back.
    """

    def __init__(self, part: Any, outside: bool) -> None:
        self.part, self.outside = part, outside
        self.before = self._read()

    def _read(self) -> list[Any]:
        return list(self.part.items() if isinstance(self.part, dict) else self.part)

    def restore(self) -> None:
        """Put back what was there, if it is something else now."""
        part, before = self.part, self.before
        now = part.values() if isinstance(part, dict) else part
        then = [value for _, value in before] if isinstance(part, dict) else before
        if len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True)):
            return
        if not self.outside or any(isinstance(value, Tensor) for value in now):
            part.clear()
            part.extend(before) if isinstance(part, (list, deque)) else part.update(before)


class Names:
    """Some names of an object, a closed-over variable or the globals of a module.

    Args:
        owner: What has the names; globals are a dictionary.
        names: The names.
        outside: As for containers.
    """

    def __init__(self, owner: Any, names: tuple[str, ...], outside: bool) -> None:
        self.owner, self.names, self.outside = owner, names, outside
        self.before = [self._get(name) for name in names]

    def _get(self, name: str) -> Any:
        if isinstance(self.owner, dict):
            return self.owner.get(name, _ABSENT)
        try:
            return getattr(self.owner, name, _ABSENT)
        except ValueError:  # a variable that is not yet bound
            return _ABSENT

    def restore(self) -> None:
        """Put back what was there, if it is something else now."""
        for name, then in zip(self.names, self.before, strict=True):
            now = self._get(name)
            if now is then or (self.outside and not isinstance(now, Tensor)):
                continue
            if isinstance(self.owner, dict):
                self.owner[name] = then
            elif then is _ABSENT:
                delattr(self.owner, name)
            else:
                setattr(self.owner, name, then)


class Attributes:
    """Attributes of a class of modules, of which tensors are put back.

    Args:
        kind: The class.
    """

    def __init__(self, kind: type) -> None:
        self.kind, self.before = kind, dict(vars(kind))

    def restore(self) -> None:
        """Put back what was there where it is another tensor now."""
        for name, now in list(vars(self.kind).items()):
            if isinstance(now, Tensor) and self.before.get(name) is not now:
                if name in self.before:
                    setattr(self.kind, name, self.before[name])
                else:
                    delattr(self.kind, name)


Snapshot = Container | Names | Attributes


def is_own_hook(hook: Any) -> bool:
    """Say whether a hook of a module is one of this package."""
    return (getattr(hook, "__module__", None) or "").startswith("gradscore.")


def snapshots_of(model: nn.Module) -> list[Snapshot]:
    """Return all that a model can keep something in, each once, with what is there now.

    Hooks are left alone: what observes a model keeps what it sees.

    Args:
        model: The model.
    """
    found: dict[Hashable, Snapshot] = {}
    pending: list[tuple[Any, bool]] = []
    kinds: set[type] = set()
    for module in model.modules():
        attributes = module.__dict__
        for part in (attributes, *(attributes.get(name) for name in _REGISTERED)):
            if isinstance(part, dict):  # a scripted module has another kind
                found[id(part)] = Container(part, False)
        pending += [
            (value, False)
            for name, value in attributes.items()
            if value.__class__ not in _PLAIN and name not in _MODULES_OWN
        ]
        kinds.add(type(module))
    pending += [(function, True) for kind in kinds for function in _code_of(kind)]
    found |= {kind: Attributes(kind) for kind in kinds if not _is_foreign(kind)}
    seen: set[int] = set()
    while pending:
        value, outside = pending.pop()
        if value.__class__ in _PLAIN or id(value) in seen or isinstance(value, nn.Module):
            continue
        seen.add(id(value))
        for key, snapshot, entries in _inside(value, outside):
            found[key] = snapshot
            pending += [(entry, snapshot.outside) for entry in entries]
    return list(found.values())


def _inside(value: Any, outside: bool) -> Iterator[tuple[Hashable, Snapshot, Iterable[Any]]]:
    """Yield what a value can keep something in, and what is in there."""
    if isinstance(value, CONTAINERS):
        if len(value) <= MOST_ENTRIES:
            snapshot = Container(value, outside)
            yield id(value), snapshot, [*(value.values() if isinstance(value, dict) else value)]
    elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        function = _function_of(value)
        if function is None or _is_foreign(function):
            return
        for cell in function.__closure__ or ():
            snapshot = Names(cell, ("cell_contents",), True)
            yield id(cell), snapshot, snapshot.before
        stored, read = _global_names(function.__code__)
        globals_ = function.__globals__
        entries = [globals_[name] for name in read if name in globals_]
        # The code of other modules is not the model's.
        home = function.__module__
        own = [x for x in entries if getattr(x, "__module__", home) == home]
        snapshot = Names(globals_, stored, True)
        yield id(function), snapshot, (*own, *snapshot.before)
    elif not isinstance(value, (type, types.ModuleType)) and not _is_foreign(type(value)):
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            yield id(attributes), Container(attributes, outside), [*attributes.values()]
        slots = _slots_of(type(value))
        if slots:
            snapshot = Names(value, slots, outside)
            yield (id(value), slots), snapshot, snapshot.before


def _is_foreign(thing: Any) -> bool:
    return (getattr(thing, "__module__", None) or "builtins").partition(".")[0] in _FOREIGN


def _function_of(value: Any) -> types.FunctionType | None:
    while isinstance(value, functools.partial):
        value = value.func
    value = getattr(value, "__func__", value)
    return value if isinstance(value, types.FunctionType) else None


_CODE: WeakKeyDictionary[type, tuple[types.FunctionType, ...]] = WeakKeyDictionary()


def _code_of(kind: type) -> tuple[types.FunctionType, ...]:
    """Return the functions of a class of modules and of its bases, torch's left out."""
    if kind not in _CODE:
        _CODE[kind] = tuple(
            function
            for base in kind.__mro__
            if not _is_foreign(base)
            for function in vars(base).values()
            if isinstance(function, types.FunctionType)
        )
    return _CODE[kind]


@functools.cache
def _slots_of(kind: type) -> tuple[str, ...]:
    slots = [getattr(base, "__slots__", ()) for base in kind.__mro__]
    names = [name for s in slots for name in ((s,) if isinstance(s, str) else s)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


_NAMES: WeakKeyDictionary[types.CodeType, tuple[tuple[str, ...], ...]] = WeakKeyDictionary()


def _global_names(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """Return the global names that a function's code binds anew, and all that it may read."""
    if code not in _NAMES:
        stored, read, pending = {}, {}, [code]
        while pending:
            part = pending.pop()
            read |= dict.fromkeys(part.co_names)
            steps = dis.get_instructions(part)
            stored |= {step.argval: None for step in steps if step.opname == "STORE_GLOBAL"}
            pending += [x for x in part.co_consts if isinstance(x, types.CodeType)]
        _NAMES[code] = tuple(stored), tuple(read)
    return _NAMES[code]
