"""The fields of a preprocessing, checked and brought to one form."""

import math
import re
from collections.abc import Sequence
from typing import Any

from gradscore.errors import InvalidArgument

CHANNELS = {"RGB": 3, "L": 1}
Size = int | tuple[int, int]


def size_of(field: str, value: Any) -> Size | None:
    """Return a size in its one form: pixels, or ``(height, width)``; None stays.

    Args:
        field: What an error calls it.
        value: A number, a pair, or text such as ``256`` or ``256x224``.

    Raises:
        InvalidArgument: If it is no size.
    """
    if isinstance(value, str):
        if not re.fullmatch(r"\d+(x\d+)?", value):
            raise InvalidArgument(f"Expected {field} as S or HxW in pixels, got {value!r}.")
        sides = [int(side) for side in value.split("x")]
        value = sides[0] if len(sides) == 1 else tuple(sides)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    if (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(side, int) and side > 0 for side in value)
    ):
        return tuple(value)
    raise InvalidArgument(f"Expected {field} as S or HxW in pixels, got {value!r}.")


def per_channel(field: str, value: Any, mode: str) -> tuple[float, ...]:
    """Return one number for each channel.

    Args:
        field: What an error calls them.
        value: As many numbers as channels, or one for all.
        mode: ``RGB`` or ``L``.

    Raises:
        InvalidArgument: If there are others.
    """
    channels = CHANNELS[mode]
    try:
        values = tuple(float(v) for v in value) if isinstance(value, Sequence) else (float(value),)
    except (TypeError, ValueError):
        values = ()
    if len(values) == 1:
        values *= channels
    if len(values) != channels or not all(map(math.isfinite, values)):
        raise InvalidArgument(f"Expected {field} with {channels} numbers or one, got {value!r}.")
    return values


def refuse_padding(resize: Size | None, crop: Size | None) -> None:
    """Raise where a crop reaches beyond every resized image, into black.

    Raises:
        InvalidArgument: If it does.
    """
    if resize is None or crop is None:
        return
    wanted = (crop, crop) if isinstance(crop, int) else crop
    # Of an image scaled to a short side the long one may hold any crop.
    sides = (resize, max(resize, *wanted)) if isinstance(resize, int) else resize
    wanted = sorted(wanted) if isinstance(resize, int) else wanted
    if any(side > there for side, there in zip(wanted, sides, strict=True)):
        raise InvalidArgument(
            f"Expected a crop within the resized image, got resize {_shown(resize)} and crop "
            f"{_shown(crop)}. An image is first scaled (its short side, or to height x width), "
            "then cropped; give `preprocessing={'resize': S, 'crop': S}`."
        )


def _shown(size: Size) -> str:
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"
