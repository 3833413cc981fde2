"""Benchmarks declared in a file: which images each set has to hold, and what is there instead.

The declarations stand in ``data_manifests/``; its README explains the fields.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from gradscore.data.labels import UNKNOWN
from gradscore.data.manifest import Manifest, file_sha256, read_manifest, write_manifest
from gradscore.errors import DataError
from gradscore.files import read_regular

LARGEST_FILE = 1 << 24


@dataclass(frozen=True)
class DeclaredSet:
    """One set of a benchmark, as its authors describe it.

    Attributes:
        name: Name of the set in a run.
        role: ``id`` or ``ood``.
        title: What it is.
        source: Where it comes from.
        citation: Whom to cite.
        licence: What its owners allow.
        files: Glob of its images below the root folder.
        count: Number of images.
        folders: Number of innermost folders; None is not checked.
        labels: ``folders`` where the label is the innermost folder's place in sorted order.
        note: What else to know.
        unverified: Those of these fields that no public source was found for.
    """

    name: str
    role: str
    title: str
    source: str
    citation: str
    licence: str
    files: str
    count: int
    folders: int | None = None
    labels: str | None = None
    note: str = ""
    unverified: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Refuse values of another type, names that leave a folder, and unknown ``unverified``.

        Raises:
            ValueError: If there is one.
        """
        for field in fields(self):
            value, optional = getattr(self, field.name), field.name in ("folders", "labels")
            kinds = {"count": int, "folders": int, "unverified": list | tuple}
            kind = kinds.get(field.name, str)
            if not (isinstance(value, kind) or (optional and value is None)):
                wanted = getattr(kind, "__name__", "list")
                raise ValueError(f"expected {field.name} as {wanted}, got {value!r}")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", self.name):
            raise ValueError(
                f"Expected a set name of letters, digits and . _ + - only, got {self.name!r}"
            )
        if self.files.startswith("/") or ".." in self.files.split("/"):
            raise ValueError(f"expected files below the root, got {self.files!r}")
        known = {field.name for field in fields(self)} - {"unverified"}
        for name in self.unverified:
            if name not in known:
                raise ValueError(f"unverified names {name!r}, which is no field of a set")

    def images(self, root: Path) -> list[Path]:
        """Return the images below ``root``, relative to it, in sorted order.

        Raises:
            DataError: If ``files`` is no pattern, or a folder cannot be read.
        """
        try:
            found = [path for path in root.glob(self.files) if path.is_file()]
            return sorted(path.relative_to(root) for path in found)
        except (OSError, ValueError, NotImplementedError) as error:  # of a pattern that is none
            raise DataError(f"Set {self.name}: cannot look for {self.files!r}: {error}") from error


def read_declaration(path: str | Path) -> list[DeclaredSet]:
    """Return the sets that a benchmark file declares.

    Raises:
        DataError: If the file is missing, is not JSON, or a set lacks a field or has an unknown
            one.
    """
    path = Path(path)
    try:
        entries = json.loads(read_regular(path, LARGEST_FILE))["sets"]
        return [DeclaredSet(**entry) for entry in entries]
    except OSError as error:
        raise DataError(f"Cannot read the benchmark file {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"Expected a benchmark file such as those in data_manifests/, got {path}: {error}."
        ) from None


def build_list(declared: DeclaredSet, root: str | Path, output: str | Path) -> int:
    """Write ``path,label,sha256`` of every image of a set; return how many there are.

    The list can be given to ``gradscore extract`` as ``LIST@ROOT``.

    Raises:
        DataError: If no image is found, a file cannot be read, or the list cannot be written.
    """
    root, output = Path(root), Path(output)
    images = declared.images(root)
    if not images:
        raise DataError(
            f"Set {declared.name}: no image matches {declared.files} below {root}. "
            f"Get it from {declared.source}."
        )
    folders = {folder: label for label, folder in enumerate(_folders(images))}
    labelled = declared.labels == "folders"
    labels = [folders[image.parent] if labelled else UNKNOWN for image in images]
    digests = [file_sha256(root / image) for image in images]
    paths = [image.as_posix() for image in images]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"Cannot write the list {output}: {error.strerror}.") from None
    write_manifest(output, Manifest(root, paths, np.array(labels, np.int64), digests))
    return len(images)


def problems(
    declared: DeclaredSet, root: str | Path, listed: str | Path | None = None
) -> Iterator[str]:
    """Yield what is missing or differs, a sentence each; nothing when the set is as declared.

    Args:
        declared: The set.
        root: Folder that its ``files`` pattern starts from.
        listed: A list written by :func:`build_list`; every image must have its SHA-256.

    Raises:
        DataError: If the list cannot be read.
    """
    root = Path(root)
    images = declared.images(root)
    if not images:
        where = f"{declared.files} below {root}{_doubt(declared, 'files', 'this layout')}"
        yield f"no image matches {where}; get it from {declared.source}"
        return
    yield from _miscounted(declared, "count", "images", len(images))
    yield from _miscounted(declared, "folders", "folders", len(_folders(images)))
    if listed is not None and not Path(listed).exists():
        yield f"no list at {listed}; write it with `gradscore manifest build`"
    elif listed is not None:
        yield from _differences(images, root, Path(listed))


def _miscounted(declared: DeclaredSet, field: str, noun: str, found: int) -> Iterator[str]:
    expected = getattr(declared, field)
    if expected is not None and found != expected:
        doubt = _doubt(declared, field, "this number")
        yield f"expected {expected} {noun}{doubt}, found {found}"


def _doubt(declared: DeclaredSet, field: str, what: str) -> str:
    return f" ({what} is unverified)" if field in declared.unverified else ""


def _differences(images: list[Path], root: Path, listed: Path) -> Iterator[str]:
    recorded = read_manifest(f"{listed}@{root}")
    if not recorded.sha256:
        raise DataError(f"Expected a list with a sha256 column, such as `build` writes: {listed}.")
    expected = dict(zip(recorded.paths, recorded.sha256, strict=True))
    there = {image.as_posix() for image in images}
    yield from (f"missing: {path}" for path in sorted(expected.keys() - there))
    yield from (f"not in the list: {path}" for path in sorted(there - expected.keys()))
    for path in sorted(there & expected.keys()):
        if file_sha256(root / path) != expected[path]:
            yield f"differs from the list: {path}"


def _folders(images: list[Path]) -> list[Path]:
    return sorted({image.parent for image in images})
