"""Whether a user's function is the one of before: a digest of its code and all that it refers to.

What a function of one's own learned is kept in a run, and must not outlive the function. The
digest covers its bytecode, its constants and defaults, and each global and enclosed variable that
it names: plain values, arrays, libraries by their version, and other functions likewise. Where a
function refers to anything else, or reads files, there is no digest, and nothing is kept.
"""

import builtins
import hashlib
import sys
from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

OPAQUE = {
    *("open", "eval", "exec", "globals", "locals", "vars", "getattr"),
    *("__import__", "import_module", "environ", "getenv"),
    *("load", "loads", "loadtxt", "genfromtxt", "fromfile", "memmap"),
    *("read", "read_text", "read_bytes", "urlopen"),
}
"""Names of what depends on more than its code says."""
PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), range, slice)


class Opaque(Exception):
    """Something has no digest."""


def fingerprint(function: Any) -> str | None:
    """Return the SHA-256 of a function and all that it refers to, or None where that is not known.

    Args:
        function: A Python function, or anything else that can be called; or several in a tuple.
    """
    digest = hashlib.sha256(sys.version.encode())
    try:
        for part in _parts(function, {}):
            digest.update(part.encode() + b"\0")
    except (Opaque, RecursionError):
        return None
    return digest.hexdigest()


def _parts(value: Any, seen: dict[int, int]) -> Iterator[str]:
    """Yield texts that differ where values differ.

    Args:
        value: What to describe.
        seen: Identity of each function and container on the way, to its place. Each must outlive
            the whole description: another value may get the identity of one that is gone.

    Raises:
        Opaque: If it cannot be described.
    """
    if isinstance(value, PLAIN):
        yield f"{type(value).__name__} {value!r}"
        return
    if isinstance(value, np.dtype | torch.dtype | torch.device | np.generic):
        yield f"{type(value).__name__} {value!s}"
        return
    if id(value) in seen:
        yield f"seen {seen[id(value)]}"
        return
    seen[id(value)] = len(seen)
    yield type(value).__name__
    if isinstance(value, torch.Tensor | np.ndarray):
        yield _array_text(value)
    elif type(value) in (tuple, list):
        for inner in value:
            yield from _parts(inner, seen)
    elif type(value) is dict:
        for key, inner in value.items():
            yield from _parts(key, seen)
            yield from _parts(inner, seen)
    elif type(value) in (set, frozenset) and all(isinstance(inner, PLAIN) for inner in value):
        yield " ".join(sorted(map(repr, value)))
    elif isinstance(value, partial):
        for inner in (value.func, value.args, value.keywords):
            yield from _parts(inner, seen)
    elif (library := _library(value)) is not None:
        yield library
    elif isinstance(value, FunctionType):
        yield from _function_parts(value, seen)
    else:
        raise Opaque


def _array_text(value: torch.Tensor | np.ndarray) -> str:
    array = value.detach().cpu() if isinstance(value, torch.Tensor) else value
    try:
        array = np.ascontiguousarray(array)
    except TypeError as error:  # types that NumPy lacks
        raise Opaque from error
    if array.dtype.hasobject:
        raise Opaque
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _library(value: Any) -> str | None:
    """Return the name and version of what belongs to Python or to an installed library."""
    module = value if isinstance(value, ModuleType) else sys.modules.get(_module_name(value))
    if module is None:
        return None
    top = module.__name__.partition(".")[0]
    # A function that wraps a library's own calls itself by that one's module and name.
    where = str(value.__globals__.get("__name__")) if isinstance(value, FunctionType) else top
    if where.partition(".")[0] != top:
        return None
    version = getattr(sys.modules.get(top), "__version__", None)
    if top in sys.stdlib_module_names and top != "__main__":
        version = ""
    if not isinstance(version, str):
        return None
    name = getattr(value, "__qualname__", getattr(value, "__name__", None))
    named = isinstance(value, ModuleType | type | FunctionType | BuiltinFunctionType)
    if not named or not isinstance(name, str) or "<locals>" in name:
        return None
    return f"{module.__name__} {version} {name}"


def _module_name(value: Any) -> str:
    name = getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


def _function_parts(function: FunctionType, seen: dict[int, int]) -> Iterator[str]:
    names: set[str] = set()
    yield from _code_parts(function.__code__, names, seen)
    if names & OPAQUE:
        raise Opaque
    for defaults in (function.__defaults__, function.__kwdefaults__):
        yield from _parts(defaults, seen)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name
        try:
            inner = cell.cell_contents
        except ValueError:  # bound later
            raise Opaque from None
        yield from _parts(inner, seen)
    for name in sorted(names):
        if name in function.__globals__:
            yield name
            yield from _parts(function.__globals__[name], seen)
        elif name in sys.modules and not hasattr(builtins, name):  # imported within
            yield name
            yield from _parts(sys.modules[name], seen)


def _code_parts(code: CodeType, names: set[str], seen: dict[int, int]) -> Iterator[str]:
    names.update(code.co_names)
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_flags}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code_parts(constant, names, seen)
        else:
            yield from _parts(constant, seen)
