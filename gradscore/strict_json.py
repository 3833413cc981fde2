"""JSON read without belief: nothing missing, nothing extra, every value of its type.

A text becomes plain values by :func:`parse`, and these become a dataclass by :func:`typed`. What
is not as the dataclass says is refused, with its place in the text.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

LARGEST_NUMBER = 2**63 - 1
"""Of whole numbers: what HDF5, Arrow and NumPy hold as well."""


MAY_BE_ABSENT = {"may be absent": True}
"""Metadata of a dataclass's field that older files do not have; it then has its default."""


class Unexpected(ValueError):
    """A value is not what it should be; the message says where and why."""


def parse(text: str) -> Any:
    """Return what a JSON text says.

    Raises:
        Unexpected: If it is no JSON, too deep, names something twice, or holds no finite number.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except RecursionError:
        raise Unexpected("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise Unexpected(f"it is no JSON: {error}") from None
    except ValueError as error:  # also numbers of thousands of digits
        raise Unexpected(str(error)) from None


def typed(kind: Any, value: Any, where: str, absent: typing.Container[str] = ()) -> Any:
    """Return a JSON value as an annotation says it is.

    Args:
        kind: ``str``, ``int``, ``float``, a dataclass, ``list``, ``tuple`` or ``dict`` of these, a
            union with None, or ``Any`` for plain values of any kind.
        value: What was parsed.
        where: What the value is called in errors, such as ``sets.digits``.
        absent: Fields of a dataclass that may not be there, and take their defaults.

    Raises:
        Unexpected: If it is something else.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return _any(value, where)
    if origin is types.UnionType:
        inner = next(member for member in arguments if member is not types.NoneType)
        return None if value is None else typed(inner, value, where)
    if dataclasses.is_dataclass(kind):
        return _fields(kind, value, where, absent)
    if origin is dict:
        return {
            key: typed(arguments[1], inner, f"{where}.{key}")
            for key, inner in _of_type(value, dict, where).items()
        }
    if origin in (list, tuple):
        found = _of_type(value, list, where)
        return origin(typed(arguments[0], inner, f"{where}[{k}]") for k, inner in enumerate(found))
    return _of_type(value, kind, where)


def _fields(kind: type, value: Any, where: str, absent: typing.Container[str]) -> Any:
    found = _of_type(value, dict, where)
    known = typing.get_type_hints(kind)
    strange = [name for name in found if name not in known]
    later = [field.name for field in dataclasses.fields(kind) if field.metadata == MAY_BE_ABSENT]
    lacking = [name for name in known if name not in {*found, *absent, *later}]
    if strange or lacking:
        what = f"no {strange[0]!r}" if strange else f"{lacking[0]!r}"
        raise Unexpected(f"expected {what} in {where or 'it'}")
    under = f"{where}." if where else ""
    return kind(**{name: typed(known[name], inner, under + name) for name, inner in found.items()})


def _of_type(value: Any, kind: type, where: str) -> Any:
    number = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and value == "inf":
        return math.inf
    if kind is float and number and abs(value) <= LARGEST_NUMBER:
        return float(value)
    if kind is int and number and abs(value) > LARGEST_NUMBER:
        raise Unexpected(f"expected a number below 2^63 as {where}, got a larger one")
    if not isinstance(value, kind) or (kind is int and not number):
        names = {str: "a text", int: "a whole number", float: "a number", list: "a list"}
        what = names.get(kind, "true or false" if kind is bool else "an object")
        raise Unexpected(f"expected {what} as {where or 'the whole'}, got {type(value).__name__}")
    if kind is float and not math.isfinite(value):
        raise Unexpected(f"expected a finite number as {where}, got {value}")
    return value


def _any(value: Any, where: str) -> Any:
    """Return a plain value, its numbers within bounds."""
    if isinstance(value, Mapping):
        return {key: _any(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [_any(inner, where) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    return _of_type(value, type(value), where)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise Unexpected(f"it says {twice!r} twice")
    return found


def _refuse_constant(name: str) -> None:
    raise Unexpected(f"expected finite numbers, got {name}")
