"""Which class a label means: whole numbers are class numbers, names are looked up or sorted."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import DataError

UNKNOWN = -1
SPLITS = frozenset({"dev", "test", "train", "training", "val", "valid", "validation"})
"""Names of folders that hold parts of a data set, and no class."""
SHOWN = 3
LARGEST = 2**63 - 1

ClassNames = Sequence[str] | Mapping[str, int]


class Labels(NamedTuple):
    """Class numbers ``[n]`` (int64; -1 unknown), and what the user should know about them."""

    numbers: NDArray[np.int64]
    notice: str = ""


@dataclass(frozen=True)
class Wanted:
    """What is known of the model that a set is opened for.

    Attributes:
        class_names: Its class names in order, or each name's number; None where unknown.
        classes: The number of its classes; None where unknown.
        labelled: Whether folders mean classes.
    """

    class_names: ClassNames | None = None
    classes: int | None = None
    labelled: bool = True


def whole_number(label: Any) -> int | None:
    """Return the class number that a label is, -1 where it is empty, or None where it is a name.

    A number that is no class, such as 1.5, gives -2.

    >>> [whole_number(label) for label in ("7", " 7 ", "7.0", 7.0, "", None, "cat", "7.5")]
    [7, 7, 7, 7, -1, -1, None, -2]
    """
    if label is None or label != label or label == "":  # not a number: what tables lack
        return UNKNOWN
    if isinstance(label, str):
        label = label.strip()
        with suppress(ValueError):
            return int(label or UNKNOWN)
    if isinstance(label, Integral):
        return int(label)
    try:
        number = float(label)
    except (ValueError, TypeError):  # a date, for instance
        return None
    return int(number) if number.is_integer() else -2


def class_numbers(
    labels: Sequence[Any], class_names: ClassNames | None = None, classes: int | None = None
) -> Labels:
    """Return the class number of every label.

    Labels that are all whole numbers (or empty) are class numbers. Others are names: the model's,
    where its class names are known; otherwise their places in sorted order, where there are as
    many names as classes.

    Args:
        labels: Numbers, or texts; None and empty ones are unknown.
        class_names: The model's class names in order, or each name's number.
        classes: The number of the model's classes.

    Raises:
        DataError: If a number is below -1, or numbers and names are mixed; the first is named.
    """
    distinct = {label: whole_number(label) for label in dict.fromkeys(labels)}
    for label, number in distinct.items():
        if number is not None and not UNKNOWN <= number <= LARGEST:
            check_number(number, label, f"image {1 + labels.index(label)}")
    names = [str(label) for label, number in distinct.items() if number is None]
    known = [label for label, number in distinct.items() if number not in (None, UNKNOWN)]
    if names and known:
        raise DataError(
            f"Expected class numbers or class names as labels, got both {known[0]!r} and "
            f"{names[0]!r} (image {1 + labels.index(names[0])})."
        )
    found, notice = named_classes(names, class_names, classes, "labels") if names else ({}, "")
    numbers = {
        label: found.get(str(label), UNKNOWN) if number is None else number
        for label, number in distinct.items()
    }
    return Labels(np.array([numbers[label] for label in labels], np.int64), notice)


def check_number(number: int, label: Any, where: str) -> None:
    """Raise where a class number cannot be one.

    Raises:
        DataError: If it is below -1, or larger than can be stored.
    """
    shown = repr(label) if len(repr(label)) < 40 else f"{repr(label)[:40]}..."
    if number < UNKNOWN:
        raise DataError(f"Expected a label of 0 or more, or -1, got {shown} in {where}.")
    if number > LARGEST:
        raise DataError(f"Expected a label below 2^63, got {shown} in {where}.")


def named_classes(
    names: Sequence[str], class_names: ClassNames | None, classes: int | None, what: str
) -> tuple[dict[str, int], str]:
    """Return the class number of each name, and a notice about what was assumed or is unknown.

    Args:
        names: Different names.
        class_names: The model's class names in order, or each name's number.
        classes: The number of the model's classes.
        what: What the names are, for the notice: ``labels`` or ``sub-folders``.
    """
    if class_names is not None:
        if not isinstance(class_names, Mapping):
            class_names = {name: place for place, name in enumerate(class_names)}
        numbers = {_plain(name): number for name, number in class_names.items()}
        found = {name: numbers[_plain(name)] for name in names if _plain(name) in numbers}
        if found:
            strange = sorted(set(names) - found.keys())
            notice = f"{what} that are no class of the model: {_listed(strange)}"
            return found, notice if strange else ""
        classes = classes or len(set(class_names.values()))
    ordered = sorted(names)
    if len(ordered) == classes and not SPLITS & {name.lower() for name in ordered}:
        ends = f"{ordered[0]} = 0 to {ordered[-1]} = {classes - 1}"
        notice = f"{what} in sorted order are taken as classes: {ends}"
        return {name: place for place, name in enumerate(ordered)}, notice
    return {}, (
        f"labels are unknown: {len(ordered)} {what} ({_listed(ordered)}), whose names are not the "
        f"model's classes and whose number is not theirs ({classes or 'unknown'})"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", " ")
