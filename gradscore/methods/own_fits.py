"""What a user's own method learned, as arrays that a run can keep, and back.

A tensor, an array, a number, or a tuple, list or dict of these is kept; anything else is learned
again in each process. Nothing is pickled.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Arrays = dict[str, NDArray]
MOST_BYTES = 1 << 30
"""Arrays of more are not kept."""
LARGEST_WHOLE = 2**53
"""Whole numbers up to this are the same as float64."""
TYPES = ("float64", "float32", "float16", "bool", "uint8", "int8", "int16", "int32", "int64")
CONTAINERS = ("one", "tuple", "list", "dict")


def pack(fits: Sequence[Any]) -> Arrays | None:
    """Return what was learned as named float64 arrays, or None where it is anything else.

    Each name says the fold, the container, the kind, type and rank of an entry, its place in the
    container, and its key.

    Args:
        fits: What the method's ``fit`` returned, once for each fold.
    """
    arrays: Arrays = {}
    for fold, learned in enumerate(fits):
        container, entries = _entries(learned)
        if not entries:
            return None
        for place, (key, value) in enumerate(entries):
            kind, array = _packed(value)
            if array is None or not isinstance(key, str):
                return None
            about = (f"fold{fold}", container, kind, str(array.dtype), str(array.ndim), str(place))
            arrays[".".join((*about, key))] = np.atleast_1d(array).astype(np.float64)
    bytes_in_all = sum(array.nbytes for array in arrays.values())
    finite = all(np.isfinite(array).all() for array in arrays.values())
    return arrays if finite and bytes_in_all <= MOST_BYTES else None


def unpack(arrays: Mapping[str, NDArray], folds: int) -> list[Any]:
    """Return what :func:`pack` packed, once for each fold.

    Raises:
        ValueError: If the names are not such.
    """
    entries: list[dict[int, tuple[str, Any]]] = [{} for _ in range(folds)]
    containers = [""] * folds
    for name, array in arrays.items():
        fold, container, kind, dtype, rank, place, key = name.split(".", 6)
        number = int(fold.removeprefix("fold"))
        known = container in CONTAINERS and kind in _UNPACKED and dtype in TYPES
        if not known or not 0 <= number < folds or containers[number] not in ("", container):
            raise ValueError(f"no method of one's own keeps {name!r}")
        containers[number] = container
        values = array.astype(dtype)
        values = values if int(rank) else values.reshape(())
        entries[number][int(place)] = (key, _UNPACKED[kind](values))
    return [
        _contained(container, [found[place] for place in sorted(found)])
        for container, found in zip(containers, entries, strict=True)
    ]


_UNPACKED: dict[str, Callable[[NDArray], Any]] = {
    "tensor": lambda values: torch.from_numpy(np.array(values)),
    "array": lambda values: values,
    "scalar": lambda values: values[()],
    "number": lambda values: values.item(),
}


def _entries(learned: Any) -> tuple[str, list[tuple[Any, Any]]]:
    if type(learned) is dict:
        return "dict", list(learned.items())
    if type(learned) in (tuple, list):
        return type(learned).__name__, [("", value) for value in learned]
    return "one", [("", learned)]


def _contained(container: str, entries: list[tuple[str, Any]]) -> Any:
    values = [value for _, value in entries]
    if container == "dict":
        return dict(entries)
    if container == "one" and len(values) == 1:
        return values[0]
    if container not in ("tuple", "list"):
        raise ValueError("a fold of a method of one's own holds nothing")
    return tuple(values) if container == "tuple" else values


def _packed(value: Any) -> tuple[str, NDArray | None]:
    """Return the kind of a value and its array, or None where a run cannot keep it."""
    if isinstance(value, torch.Tensor):
        kind, plain = "tensor", value.detach().cpu().resolve_conj().resolve_neg()
        array = None if plain.dtype is torch.bfloat16 or plain.is_sparse else np.asarray(plain)
    elif isinstance(value, np.ndarray | np.generic):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        array = np.asarray(value)
    elif isinstance(value, bool | int | float):
        kind, array = "number", np.asarray(value)
    else:
        return "", None
    if array is None or str(array.dtype) not in TYPES or not array.size:
        return kind, None
    if array.dtype == np.int64 and np.abs(array).max() > LARGEST_WHOLE:
        return kind, None
    return kind, array
