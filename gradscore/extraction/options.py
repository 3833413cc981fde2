"""What the arguments of an extraction may be."""

import os
from collections.abc import Mapping, Sequence

from gradscore.errors import InvalidArgument
from gradscore.extraction.computing import GRADIENTS
from gradscore.extraction.precision import PRECISIONS
from gradscore.run import ROLES
from gradscore.run.names import check_set_name

DEVICES = ("auto", "cpu", "cuda")


def check_options(
    sets: Mapping[str, tuple[str | None, str | os.PathLike]],
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
        RunError: If a set cannot have its name.
    """
    if not sets:
        raise InvalidArgument("Expected at least one set of images, got none.")
    for name, (role, _) in sets.items():
        check_set_name(name)
        _one_of("role", role, ROLES)
    _one_of("device", device, DEVICES)
    _one_of("precision", precision, PRECISIONS)
    _one_of("on_error", on_error, ("fail", "skip"))
    _one_of("gradients", gradients, GRADIENTS)
    if workers < 0 or shard_rows < 1:
        raise InvalidArgument(
            f"Expected workers >= 0 and shard_rows >= 1, got {workers} and {shard_rows}."
        )


def _one_of(name: str, value: object, known: Sequence | Mapping) -> None:
    if value not in known:
        raise InvalidArgument(f"Expected {name} {' or '.join(map(str, known))}, got {value!r}.")
