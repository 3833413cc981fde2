"""Lists of images: read and written, with the SHA-256 of their files where it is wanted.

A manifest is a .csv or .parquet with the columns ``path`` and ``label`` (and ``sha256``, if
wanted), or an OpenOOD imglist (.txt, ``path label`` a line). Paths are relative to the manifest's
own folder, or to ROOT where it is given as ``MANIFEST@ROOT``, and may not leave it.

In a .csv a path that a spreadsheet would take for a formula, or with characters that do not print,
stands behind an apostrophe (:func:`gradscore.escapes.to_cell`) and is read back as it was.
"""

import csv
import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gradscore.data.labels import ClassNames, Wanted, class_numbers
from gradscore.data.long_lists import Unclear, plain_paths, read_long
from gradscore.data.manifest_formats import IMAGE_SUFFIXES, READERS, WRITERS, Columns
from gradscore.data.pictures import Files, Opened
from gradscore.errors import DataError
from gradscore.files import near_path, open_regular, written_aside

SUFFIXES = tuple(READERS)


@dataclass(frozen=True)
class Manifest:
    """A list of images.

    Attributes:
        root: The folder that the paths start from.
        paths: Relative paths, with forward slashes.
        labels: Shape ``[n]``, int64; -1 unknown.
        sha256: Each file's digest, or empty where the list has none.
        notice: What the user should know about the labels, or empty.
    """

    root: Path
    paths: Sequence[str]
    labels: NDArray[np.int64]
    sha256: Sequence[str] = ()
    notice: str = ""


def split_root(source: str) -> tuple[Path, Path]:
    """Return the manifest's path and the root of its images, from ``MANIFEST[@ROOT]``.

    >>> split_root("lists/test.csv@images")
    (PosixPath('lists/test.csv'), PosixPath('images'))
    """
    manifest, at, root = source.rpartition("@")
    if at and manifest.lower().endswith(SUFFIXES) and not Path(source).exists():
        return Path(manifest), Path(root)
    return Path(source), Path(source).parent


def open_list(text: str, wanted: Wanted) -> Opened:
    """Open the images of ``MANIFEST[@ROOT]``.

    Raises:
        DataError: As :func:`read_manifest` does.
    """
    listed = read_manifest(text, wanted.class_names, wanted.classes)
    reader = Files(listed.root, listed.paths, listed.sha256, inside=True)
    notices = [listed.notice]
    return Opened(listed.paths, listed.labels, reader, contents=listed.sha256, notices=notices)


def read_manifest(
    source: str | Path, class_names: ClassNames | None = None, classes: int | None = None
) -> Manifest:
    """Return the images that ``MANIFEST[@ROOT]`` lists.

    Absolute paths below the root are taken as relative to it, and backslashes as slashes where no
    file has them in its name.

    Args:
        source: The list, and where its paths start if that is not its own folder.
        class_names: The model's class names, where labels may be names.
        classes: The number of its classes.

    Raises:
        DataError: If it is missing, empty or malformed (the line is named), or a path leaves the
            root: an absolute one elsewhere, one with ``..``, or a symbolic link out of it.
    """
    path, root = split_root(str(source))
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise DataError(f"Expected a manifest of {', '.join(SUFFIXES)}, got {str(path)!r}.")
    if not path.is_file():
        raise DataError(f"No manifest at {str(path)!r}.{near_path(path)}")
    if not root.is_dir():
        raise DataError(f"No folder {str(root)!r} for the images of {str(path)!r}.")
    try:
        with open_regular(path) as file:
            with suppress(Unclear):
                return _read_long(file, path, root, class_names, classes)
            file.seek(0)
            rows = list(READERS[suffix](file, path))
    except (UnicodeError, csv.Error, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"Cannot read the manifest {str(path)!r}: {reason}.") from error
    if not rows:
        raise DataError(f"The manifest {str(path)!r} lists no images.")
    paths, labels, digests = zip(*rows, strict=True)
    paths = _completed(_relative(paths, root), root)
    _refuse_escapes(paths, root, path)
    if any(digests) and not all(digests):
        raise DataError(f"Expected a sha256 for every image or none in {str(path)!r}.")
    try:
        numbers, notice = class_numbers(labels, class_names, classes)
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from None
    return Manifest(root, paths, numbers, digests if any(digests) else (), notice)


def _read_long(
    file: BinaryIO,
    path: Path,
    root: Path,
    class_names: ClassNames | None,
    classes: int | None,
) -> Manifest:
    """Return what a long list holds, checked a column at a time.

    Raises:
        Unclear: If it is short, or anything about it is not plain: then the rows are read one by
            one, and errors name the first at fault.
    """
    listed = read_long(file, path, os.fstat(file.fileno()).st_size)
    try:
        numbers, notice = class_numbers(listed.known, class_names, classes)
    except DataError as error:
        raise Unclear from error
    if len(listed.digests) and not listed.digests.lengths.all():
        raise Unclear
    paths = plain_paths(listed.paths, root)
    return Manifest(root, paths, numbers[listed.labels], listed.digests, notice)


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """Write a list as .csv, .parquet or .txt (which has no room for digests).

    Raises:
        DataError: If the ending is unknown or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in WRITERS:
        raise DataError(f"Expected a manifest of {', '.join(SUFFIXES)}, got {str(path)!r}.")
    try:
        with written_aside(path, DataError) as file:
            WRITERS[suffix](file, _columns(manifest))
    except UnicodeError:
        raise DataError(
            f"Expected file names in UTF-8 to write {str(path)!r}, got others; write a .csv."
        ) from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with open_regular(path) as file:
            digest = hashlib.sha256()
            while part := file.read(1 << 20):
                digest.update(part)
            return digest.hexdigest()
    except OSError as error:
        raise DataError(f"Cannot read {str(path)!r}: {error.strerror}.") from error


def _relative(paths: Sequence[str], root: Path) -> Sequence[str]:
    """Return paths with slashes, those below the root relative to it; what leaves it stays."""
    places = [os.path.join(place, "") for place in (os.path.abspath(root), os.path.realpath(root))]
    result = []
    for path in paths:
        slashes = path.replace("\\", "/")
        if slashes != path and "\0" not in path and not os.path.lexists(os.path.join(root, path)):
            path = slashes if os.path.lexists(os.path.join(root, slashes)) else path
        if os.path.isabs(path):
            inside = next((place for place in places if path.startswith(place)), "")
            path = path[len(inside) :]
        result.append(path)
    return result


def _completed(paths: Sequence[str], root: Path) -> Sequence[str]:
    """Return paths with the ending of the first one's file, where a list leaves endings out."""
    first = os.path.join(root, paths[0])
    if any(path.lower().endswith(IMAGE_SUFFIXES) for path in paths) or "\0" in first:
        return paths
    endings = ["", *(form for ending in IMAGE_SUFFIXES for form in (ending, ending.upper()))]
    ending = next((ending for ending in endings if os.path.lexists(first + ending)), "")
    return [path + ending for path in paths]


def _refuse_escapes(paths: Sequence[str], root: Path, manifest: Path) -> None:
    inside = os.path.join(os.path.realpath(root), "")

    @cache
    def contained(place: str) -> bool:
        return os.path.join(os.path.realpath(place), "").startswith(inside)

    for line, path in enumerate(paths, 1):
        place = os.path.join(root, path)
        escapes = os.path.isabs(path) or ".." in path.split("/") or "\0" in path
        if (
            escapes
            or not contained(os.path.dirname(place))
            or (os.path.islink(place) and not contained(place))
        ):
            raise DataError(
                f"Expected paths inside {str(root)!r} in {str(manifest)!r}, got {path!r} "
                f"(image {line})."
            )


def _columns(manifest: Manifest) -> Columns:
    columns = {"path": list(manifest.paths), "label": manifest.labels.tolist()}
    return {**columns, "sha256": list(manifest.sha256)} if manifest.sha256 else columns
