"""Where a model can keep something between two forwards, and how that is put back.

Attributes of modules, and what is in containers and plain objects there. Outside of the model,
where its own code keeps something: variables that functions close over, attributes of classes,
global variables. Of these only tensors are put back: anything else may be the caller's own notes.
"""

import functools
import types
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from operator import delitem, is_, setitem
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from gradscore.copies import CONTAINERS, MODULES_OWN, SavedContainer
from gradscore.network.contents import PLAIN, is_own_hook
from gradscore.network.listing import Listing
from gradscore.network.places import global_names, is_foreign, slots_of

MOST_ENTRIES = 4096
"""Larger containers hold data rather than what a forward made."""

_PLAIN = PLAIN | {Tensor, nn.Parameter}
_HOOKS = tuple(name for name in MODULES_OWN if "hooks" in name)
_REGISTERED = ("_parameters", "_buffers", "_modules")
_ABSENT = object()
_NOTHING: dict[str, Any] = {}


class SavedNames:
    """Some names of an object, a closed-over variable, a class or the globals of a module.

    Args:
        owner: What has the names; globals are a dictionary.
        names: The names; of a class, all its attributes are meant.
        tensors_only: Whether only what is a tensor now is put back.
    """

    def __init__(
        self, owner: Any, names: tuple[str, ...] = (), *, tensors_only: bool = False
    ) -> None:
        self.tensors_only = tensors_only
        self._owner, self._names = owner, names
        self.before = self._read()

    def _read(self) -> dict[str, Any]:
        owner = self._owner
        if isinstance(owner, type):
            return dict(vars(owner))
        if isinstance(owner, dict):
            return {name: owner[name] for name in self._names if name in owner}
        found = {}
        for name in self._names:
            with suppress(AttributeError, ValueError):  # not set, or a variable not yet bound
                found[name] = getattr(owner, name)
        return found

    def restore(self) -> None:
        """Put back what was there, if it is something else now."""
        owner, now = self._owner, self._read()
        put, remove = (setitem, delitem) if isinstance(owner, dict) else (setattr, delattr)
        for name in self.before | now:
            value, then = now.get(name, _ABSENT), self.before.get(name, _ABSENT)
            if value is then or (self.tensors_only and not isinstance(value, Tensor)):
                continue
            if then is _ABSENT:
                remove(owner, name)
            else:
                put(owner, name, then)


class SavedHooks:
    """The hooks of a model's modules, of which those that a forward adds are removed.

    Hooks of this package stay: another thread may have added them.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        every = [[module.__dict__.get(name) for name in _HOOKS] for module in modules]
        self._hooks = [hooks for of_module in every for hooks in of_module if hooks is not None]
        self._before = {id(hooks): set(hooks) for hooks in self._hooks if hooks}

    def restore(self) -> None:
        """Remove the hooks that were not there before."""
        for hooks in self._hooks:
            if not hooks:
                continue
            before = self._before.get(id(hooks), ())
            for key, hook in list(hooks.items()):
                if key not in before and not is_own_hook(hook):
                    del hooks[key]


class SavedModules:
    """The attributes of modules, and their parameters, buffers and modules by name.

    They are what a :class:`~gradscore.copies.SavedContainer` each would be, in one loop over all.

    Args:
        modules: The modules.
    """

    tensors_only = False

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._parts: list[dict[str, Any]] = []
        for module in modules:
            attributes = module.__dict__
            for part in (attributes, *[attributes.get(name) for name in _REGISTERED]):
                if isinstance(part, dict):  # a scripted module has another kind
                    self._parts.append(part)
        self._before = [dict(part) if part else _NOTHING for part in self._parts]

    def restore(self) -> None:
        """Put back what was there, if it is something else now."""
        for part, before in zip(self._parts, self._before, strict=True):
            same = len(part) == len(before) and all(map(is_, part, before))
            if not (same and all(map(is_, part.values(), before.values()))):
                part.clear()
                part.update(before)


Snapshot = SavedContainer | SavedNames | SavedModules


def snapshots_of(listing: Listing) -> list[Snapshot]:
    """Return all that a model can keep something in, each once, with what is there now.

    Hooks are left alone: what observes a model keeps what it sees.

    Args:
        listing: The listing of the model.
    """
    found: dict[Hashable, Snapshot] = {None: SavedModules(listing.modules.values())}
    pending = [(around[name], False) for around, name in listing.kept]
    kinds = set(map(type, listing.modules.values()))
    pending += [(function, True) for kind in kinds for function in _code_of(kind)]
    found |= {kind: SavedNames(kind, tensors_only=True) for kind in kinds if not is_foreign(kind)}
    seen: set[int] = set()
    while pending:
        value, outside = pending.pop()
        if value.__class__ in _PLAIN or id(value) in seen or isinstance(value, nn.Module):
            continue
        seen.add(id(value))
        for key, snapshot, entries in _inside(value, outside):
            found[key] = snapshot
            pending += [(entry, snapshot.tensors_only) for entry in entries]
    return list(found.values())


def _inside(value: Any, outside: bool) -> Iterator[tuple[Hashable, Snapshot, Iterable[Any]]]:
    """Yield what a value can keep something in, and what is in there."""
    if isinstance(value, CONTAINERS):
        if len(value) <= MOST_ENTRIES:
            snapshot = SavedContainer(value, tensors_only=outside)
            yield id(value), snapshot, [*(value.values() if isinstance(value, dict) else value)]
    elif isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
        function = _function_of(value)
        if function is None or is_foreign(function):
            return
        for cell in function.__closure__ or ():
            snapshot = SavedNames(cell, ("cell_contents",), tensors_only=True)
            yield id(cell), snapshot, snapshot.before.values()
        stored, read = global_names(function.__code__)
        globals_ = function.__globals__
        entries = [globals_[name] for name in read if name in globals_]
        # The code of other modules is not the model's.
        home = function.__module__
        own = [x for x in entries if getattr(x, "__module__", home) == home]
        snapshot = SavedNames(globals_, stored, tensors_only=True)
        yield id(function), snapshot, (*own, *snapshot.before.values())
    elif not isinstance(value, (type, types.ModuleType)) and not is_foreign(type(value)):
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            yield (
                id(attributes),
                SavedContainer(attributes, tensors_only=outside),
                [*attributes.values()],
            )
        slots = slots_of(type(value))
        if slots:
            snapshot = SavedNames(value, slots, tensors_only=outside)
            yield (id(value), slots), snapshot, snapshot.before.values()


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
            if not is_foreign(base)
            for function in vars(base).values()
            if isinstance(function, types.FunctionType)
        )
    return _CODE[kind]
