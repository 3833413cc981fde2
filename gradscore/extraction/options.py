"""What the arguments of an extraction may be."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradscore.errors import InvalidArgument
from gradscore.extraction.computing import GRADIENTS
from gradscore.extraction.precision import PRECISIONS
from gradscore.run import ROLES
from gradscore.run.layout import check_set_name

DEVICES = ("auto", "cpu", "cuda")


def several(values: Any) -> tuple:
    """Return one value, or several in a sequence, as a tuple; none for None."""
    if values is None:
        return ()
    alone = isinstance(values, str) or not isinstance(values, Iterable)
    return (values,) if alone else tuple(values)


def check_sets(
    sets: Mapping[str, tuple[str | None, str | os.PathLike]],
    limit: int | Mapping[str, int] | None,
    blocks: Mapping[str, str | Sequence[str]] | None,
) -> None:
    """Raise where sets, their limits or groups of parameters are not given as they should be.

    Raises:
        InvalidArgument: Naming the argument and its form.
        RunError: If a set cannot have its name.
    """
    if not sets:
        raise InvalidArgument("Expected at least one set of images, got none.")
    if not isinstance(sets, Mapping):
        raise InvalidArgument(f"Expected sets as {{'NAME': ('id', 'PATH')}}, got {_kind(sets)}.")
    for name, entry in sets.items():
        check_set_name(name)
        if not isinstance(entry, tuple | list) or len(entry) != 2:
            got = f"{entry!r:.80}"
            raise InvalidArgument(f"Expected set {name!r} as ('id', 'PATH') or so, got {got}.")
        _one_of("role", entry[0], ROLES)
        if not isinstance(entry[1], str | os.PathLike):
            raise InvalidArgument(
                f"Expected the path of set {name!r}, got {_kind(entry[1])}; images in memory can "
                "be saved with numpy.savez('FILE.npz', images=..., labels=...)."
            )
    limits = limit.items() if isinstance(limit, Mapping) else [(next(iter(sets)), limit)]
    for name, most in limits:
        if name not in sets:
            raise InvalidArgument(f"Expected limits of {', '.join(sets)}, got one of {name!r}.")
        if most is not None and (not isinstance(most, int) or most < 1):
            raise InvalidArgument(f"Expected a limit of 1 or more images, got {most!r}.")
    if not isinstance(blocks or {}, Mapping):
        raise InvalidArgument(f"Expected blocks as {{'NAME': 'GLOB'}}, got {_kind(blocks)}.")


def check_options(
    device: str,
    precision: str,
    workers: int,
    on_error: str,
    gradients: str,
    shard_rows: int,
) -> None:
    """Raise where an argument of :func:`gradscore.extraction.extract` is out of range.

    Raises:
        InvalidArgument: Naming the argument and what it may be.
    """
    _one_of("device", device, DEVICES)
    _one_of("precision", precision, PRECISIONS)
    _one_of("on_error", on_error, ("fail", "skip"))
    _one_of("gradients", gradients, GRADIENTS)
    for name, value, least in (("workers", workers, 0), ("shard_rows", shard_rows, 1)):
        if not isinstance(value, int) or value < least:
            raise InvalidArgument(f"Expected {name} >= {least}, got {value!r}.")


def _kind(value: object) -> str:
    return f"{value!r:.80}" if isinstance(value, str) else type(value).__name__


def _one_of(name: str, value: object, known: Sequence | Mapping) -> None:
    if value not in known:
        raise InvalidArgument(f"Expected {name} {' or '.join(map(str, known))}, got {value!r}.")
