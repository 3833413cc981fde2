"""Folders of images: what is in them, and the classes that their sub-folders mean.

Also the files that one name with wildcards or numbers stands for.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gradscore.data.labels import (
    UNKNOWN,
    ClassNames,
    Labels,
    Wanted,
    named_classes,
    whole_number,
)
from gradscore.data.manifest_formats import IMAGE_SUFFIXES
from gradscore.data.pictures import Files, Opened
from gradscore.data.texts import Texts
from gradscore.errors import DataError
from gradscore.files import near_path

MACOS = "__MACOSX"
"""Folder that macOS adds to archives, with a shadow of each file."""
PACKED = (".tar", ".tgz", ".parquet")
"""Files that hold images, and are a set of their own."""
DIGITS = 9
"""A name of more digits is no class number, but a date or an identity."""
NESTED_LINKS = 3
"""Links to folders are followed so many deep; more of them could name a folder in endless ways."""
MOST_REVISITS = 10_000
"""Folders that links lead to once more; few folders that link to each other name millions."""


MOST_FILES = 1_000_000
"""Files that one name with ``{000..009}`` may stand for."""


class Listing(NamedTuple):
    """Relative paths of a folder's images, sorted, and what was passed over, in words."""

    paths: list[str]
    passed_over: str


def open_folder(text: str, wanted: Wanted) -> Opened:
    """Open the images below a folder; for a labelled set its sub-folders are classes.

    Raises:
        DataError: As :func:`find_images` does.
    """
    paths, passed_over = find_images(text)
    labels, notice = None, ""
    if wanted.labelled:
        labels, notice = folder_labels(paths, wanted.class_names, wanted.classes)
    held = Texts.of(paths)
    return Opened(held, labels, Files(Path(text), held), notices=[notice, passed_over])


def find_images(folder: str | Path) -> Listing:
    """Return the images below a folder; hidden files and folders are left out.

    Links to files and to folders are followed wherever they lead, as torchvision's ImageFolder
    does. A folder that holds itself by a link is not entered again.

    Raises:
        DataError: If there is no such folder, it cannot be read, no image is in it, or links
            lead to its folders more than :data:`MOST_REVISITS` times over.
    """
    folder = str(folder)
    if not os.path.isdir(folder):
        raise DataError(f"No folder at {folder!r}.{near_path(folder)}")
    found, others = [], Counter()
    try:
        for path in _files(folder, others):
            if path.lower().endswith(IMAGE_SUFFIXES):
                found.append(path)
            else:
                others[ending(path)] += 1
    except OSError as error:
        raise DataError(f"Cannot read {error.filename!r}: {error.strerror}.") from error
    if not found:
        there = f"; there are {counted(others)}" if others else ""
        packed = next((kind for kind in PACKED if others[kind]), None)
        there += f", which are named as {folder}/*{packed}" if packed else ""
        endings = " ".join(IMAGE_SUFFIXES)
        raise DataError(f"No images ({endings}) in the folder {folder!r}{there}.")
    return Listing(sorted(found), f"passed over: {counted(others)}" if others else "")


def _files(folder: str, others: Counter) -> Iterator[str]:
    """Yield the files below a folder that are not hidden, relative to it, in any order.

    Args:
        folder: The folder.
        others: Counts what is passed over.
    """
    # Of each folder to visit: its path, the same from here with a slash at the end, identities of
    # itself and of those that it was reached through, and how many links led to it.
    waiting = [(folder, "", (_identity(folder),), 0)]
    # Folders by identity, and under "again" those entered once more.
    reached: Counter = Counter()
    while waiting:
        place, prefix, above, links = waiting.pop()
        with os.scandir(place) as found:
            entries = list(found)
        for entry in entries:
            if entry.name.startswith(".") or entry.name == MACOS:
                others["hidden"] += 1
            elif not _is_folder(entry):
                yield prefix + entry.name
            else:
                identity, nested = _identity(entry.path), links + entry.is_symlink()
                if identity in above or nested > NESTED_LINKS:
                    others["links to folders above"] += 1
                    continue
                reached["again"] += identity in reached
                reached[identity] += 1
                if reached["again"] > MOST_REVISITS:
                    raise DataError(
                        f"Expected links that lead to the same folders at most {MOST_REVISITS:,} "
                        f"times over, got more at {entry.path!r}; remove links between them."
                    )
                inner = f"{prefix}{entry.name}/"
                waiting.append((entry.path, inner, (*above, identity), nested))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def ending(path: str) -> str:
    """Return how a file's name ends, in lower case, to be counted by.

    >>> [ending(path) for path in ("a/b.TXT", "a/README")]
    ['.txt', 'without an ending']
    """
    return os.path.splitext(path)[1].lower() or "without an ending"


def counted(others: Counter) -> str:
    """Return what was passed over, most frequent first.

    >>> counted(Counter({".txt": 2, "hidden": 1}))
    '2 .txt, 1 hidden'
    """
    ordered = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n:,} {what}" for what, n in ordered)


def paths_of(text: str, what: str) -> list[Path]:
    """Return the files of a name with at most one ``{000..009}``, or with wildcards.

    Args:
        text: The name.
        what: What an error calls such a file.

    Raises:
        DataError: If a file is absent, or the numbers are more than :data:`MOST_FILES`.
    """
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if braces:
        first, last = braces.groups()
        if len(last) > 18 or int(last) - int(first) >= MOST_FILES:
            raise DataError(f"Expected at most {MOST_FILES:,} files, got {braces[0][:40]}.")
        numbers = range(int(first), int(last) + 1)
        names = [text.replace(braces[0], str(n).zfill(len(first))) for n in numbers]
    else:
        names = sorted(glob.glob(text)) if not Path(text).is_file() else [text]
    absent = next((name for name in names if not Path(name).is_file()), None if names else text)
    if absent is not None:
        raise DataError(f"No {what} at {absent!r}.{near_path(absent)}")
    return [Path(name) for name in names]


def folder_labels(
    paths: Sequence[str], class_names: ClassNames | None, classes: int | None
) -> Labels:
    """Return the labels that a folder's sub-folders mean.

    Sub-folders whose names are all whole numbers are class numbers, unless the model's class names
    are such. Other names are looked up among the model's, or sorted.

    Args:
        paths: Relative paths of the images.
        class_names: The model's class names in order, or each name's number; or None.
        classes: The number of its classes, or None.
    """
    # One text a folder, however many images are in it.
    names: dict[str, str] = {"": ""}
    tops = [
        names.setdefault(top, top)
        for top in (path.partition("/")[0] if "/" in path else "" for path in paths)
    ]
    folders = sorted({*tops} - {""})
    outside = tops.count("")
    if not folders:
        return Labels(np.full(len(paths), UNKNOWN, np.int64), "labels are unknown: no sub-folders")
    if _are_numbers(folders) and not {*folders} & {*(class_names or ())}:
        found = {name: whole_number(name) for name in folders}
        notice = _numbered(folders, found)
    else:
        found, notice = named_classes(folders, class_names, classes, "sub-folders")
        if not found and len(folders) == 1 and all(path.count("/") > 1 for path in paths):
            notice += f"; if the classes are the sub-folders of {folders[0]}, name that folder"
    notices = [notice] if notice else []
    if found and outside:
        notices.append(f"{outside:,} outside of sub-folders without a label")
    return Labels(
        np.array([found.get(top, UNKNOWN) for top in tops], np.int64), "; ".join(notices)
    )


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() and len(name) <= DIGITS for name in names)


def _numbered(folders: Sequence[str], found: dict[str, int]) -> str:
    """Return that names are numbers, where their sorted order would give other classes."""
    places = {name: place for place, name in enumerate(folders)}
    if len(set(found.values())) < len(found):
        return "several sub-folders are the same number"
    other = next((name for name in folders if places[name] != found[name]), None)
    if other is None:
        return ""
    return (
        "the numbers that name the sub-folders are taken as classes (torchvision's ImageFolder "
        f"sorts the names: {other} would be class {places[other]})"
    )
