"""Where the code of a model finds what is in no instance: in classes, globals and closures."""

import dis
import functools
import sys
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

FOREIGN = frozenset({"builtins", "gradscore", "logging", "numpy", "threading", "torch"})
"""Packages whose objects and code keep nothing of a forward."""

_WRAPPERS = {
    property: "fget",
    staticmethod: "__func__",
    classmethod: "__func__",
    types.MethodType: "__func__",
    functools.partial: "func",
    functools.cached_property: "func",
}


def is_foreign(thing: Any) -> bool:
    """Say whether a class or function is of a package that keeps nothing of a forward."""
    return (getattr(thing, "__module__", None) or "builtins").partition(".")[0] in FOREIGN


def places_of(modules: Collection[nn.Module]) -> list[tuple[Mapping[str, Any], str]]:
    """Return where the code of modules finds what is in no instance, as namespaces and names.

    The code is that of their classes, of functions that they have as attributes, and of functions
    that this code calls and that stand in the same file. Of modules of Python that it names, the
    attributes that it names are places too, but for those of the standard library. What is torch's
    own is left out.

    Args:
        modules: The modules of a model.
    """
    places: list[tuple[Mapping[str, Any], str]] = []
    functions: dict[types.FunctionType, None] = {}
    classes = {base: None for kind in {type(m) for m in modules} for base in kind.__mro__}
    for kind in classes:
        if kind.__module__.partition(".")[0] not in ("torch", "builtins"):
            places += [(kind.__dict__, name) for name in kind.__dict__]
            functions |= dict.fromkeys(_functions_in(kind.__dict__.values()))
    for module in modules:
        functions |= dict.fromkeys(_functions_in(vars(module).values()))
    pending = list(functions)
    while pending:
        function = pending.pop()
        around, names = function.__globals__, global_names(function.__code__)[1]
        found = [name for name in names if name in around]
        places += [(around, name) for name in found]
        for value in map(around.__getitem__, found):
            if isinstance(value, types.ModuleType):
                inside = vars(value) if _keeps_settings(value) else {}
                places += [(inside, name) for name in names if name in inside]
        for inner in _functions_in(map(around.__getitem__, found)):
            if inner not in functions and inner.__module__ == function.__module__:
                functions[inner] = None
                pending.append(inner)
    return list({(id(place), name): (place, name) for place, name in places}.values())


def _keeps_settings(module: types.ModuleType) -> bool:
    root = module.__name__.partition(".")[0]
    return root not in FOREIGN and root not in sys.stdlib_module_names


def _functions_in(values: Any) -> Iterator[types.FunctionType]:
    """Yield the functions among values, also those that something wraps, but for torch's own."""
    for value in values:
        while value.__class__ in _WRAPPERS:
            value = getattr(value, _WRAPPERS[value.__class__])
        found: dict[types.FunctionType, None] = {}
        while isinstance(value, types.FunctionType) and value not in found:
            found[value] = None
            value = value.__dict__.get("__wrapped__")
        yield from (function for function in found if not is_foreign(function))


def can_change(value: Any, name: str) -> bool:
    """Say whether what stands at a place can change and still be the same object."""
    if name.startswith("__") or isinstance(value, (type, types.ModuleType)):
        return False
    if isinstance(value, types.FunctionType):
        return not is_foreign(value) and any(
            not isinstance(inside, type) for inside in cells_of(value)
        )
    if isinstance(value, (dict, list, set, bytearray)) or hasattr(value, "tobytes"):
        return True
    kind = type(value)
    root = kind.__module__.partition(".")[0]
    if root == "torch" or kind in (types.MethodType, functools.partial, types.SimpleNamespace):
        return True
    return not is_foreign(kind) and (hasattr(value, "__dict__") or bool(slots_of(kind)))


def inside_of(value: Any) -> list[Any]:
    """Return what an object keeps: its attributes, or what a function closes over."""
    if isinstance(value, types.FunctionType):
        return [] if is_foreign(value) else cells_of(value)
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    slots = [getattr(value, name, None) for name in slots_of(type(value))]
    return [vars(value), *slots] if hasattr(value, "__dict__") else slots


def cells_of(function: types.FunctionType) -> list[Any]:
    """Return the values of the variables that a function closes over, of those that have one."""
    values = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            values.append(cell.cell_contents)
    return values


@functools.cache
def slots_of(kind: type) -> tuple[str, ...]:
    """Return the names of the slots of a class and of its bases."""
    slots = [getattr(base, "__slots__", ()) for base in kind.__mro__]
    names = [name for s in slots for name in ((s,) if isinstance(s, str) else s)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


_NAMES: WeakKeyDictionary[types.CodeType, tuple[tuple[str, ...], ...]] = WeakKeyDictionary()


def global_names(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
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
