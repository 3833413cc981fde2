"""Lists of images: read and written, with the SHA-256 of their files where it is wanted.

A manifest is a .csv or .parquet with the columns ``path`` and ``label`` (and ``sha256``, if
wanted), or an OpenOOD imglist (.txt, ``path label`` a line). Paths are relative to the manifest's
own folder, or to ROOT where it is given as ``MANIFEST@ROOT``, and may not leave it.
"""

import csv
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import DataError

SUFFIXES = (".csv", ".parquet", ".txt")
IMAGE_SUFFIXES = (
    ".bmp",
    ".gif",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
UNKNOWN = -1

Row = tuple[str, int, str]


@dataclass(frozen=True)
class Manifest:
    """A list of images.

    Attributes:
        root: The folder that the paths start from.
        paths: Relative paths, with forward slashes.
        labels: Shape ``[n]``, int64; -1 unknown.
        sha256: Each file's digest, or empty where the list has none.
    """

    root: Path
    paths: Sequence[str]
    labels: NDArray[np.int64]
    sha256: Sequence[str] = ()


def split_root(source: str) -> tuple[Path, Path]:
    """Return the manifest's path and the root of its images, from ``MANIFEST[@ROOT]``.

    >>> split_root("lists/test.csv@images")
    (PosixPath('lists/test.csv'), PosixPath('images'))
    """
    manifest, at, root = source.rpartition("@")
    if at and manifest.lower().endswith(SUFFIXES) and not Path(source).exists():
        return Path(manifest), Path(root)
    return Path(source), Path(source).parent


def read_manifest(source: str | Path) -> Manifest:
    """Return the images that ``MANIFEST[@ROOT]`` lists.

    Raises:
        DataError: If it is missing, empty or malformed (the line is named), or a path leaves the
            root: an absolute one, one with ``..``, or a symbolic link out of it.
    """
    path, root = split_root(str(source))
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(f"Expected a manifest of {', '.join(SUFFIXES)}, got {str(path)!r}.")
    if not path.is_file():
        raise DataError(f"No manifest at {str(path)!r}.")
    if not root.is_dir():
        raise DataError(f"No folder {str(root)!r} for the images of {str(path)!r}.")
    try:
        rows = list(_READERS[suffix](path))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"Cannot read the manifest {str(path)!r}: {error}") from error
    if not rows:
        raise DataError(f"The manifest {str(path)!r} lists no images.")
    paths, labels, digests = zip(*rows, strict=True)
    _refuse_escapes(paths, root, path)
    if any(digests) and not all(digests):
        raise DataError(f"Expected a sha256 for every image or none in {str(path)!r}.")
    return Manifest(root, paths, np.array(labels, np.int64), digests if any(digests) else ())


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """Write a list as .csv, .parquet or .txt (which has no room for digests).

    Raises:
        DataError: If the ending is unknown or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _WRITERS:
        raise DataError(f"Expected a manifest of {', '.join(SUFFIXES)}, got {str(path)!r}.")
    try:
        _WRITERS[suffix](path, manifest)
    except OSError as error:
        raise DataError(f"Cannot write {str(path)!r}: {error.strerror}.") from error


def find_images(folder: str | Path) -> list[str]:
    """Return the images below a folder as relative paths, sorted; hidden files are left out.

    Raises:
        DataError: If there is no such folder or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"No folder at {str(folder)!r}.")
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inner = Path(place).relative_to(folder).as_posix()
        prefix = "" if inner == "." else f"{inner}/"
        found += [
            prefix + name
            for name in files
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        endings = " ".join(IMAGE_SUFFIXES)
        raise DataError(f"No images ({endings}) in the folder {str(folder)!r}.")
    return sorted(found)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while part := file.read(1 << 20):
                digest.update(part)
            return digest.hexdigest()
    except OSError as error:
        raise DataError(f"Cannot read {str(path)!r}: {error.strerror}.") from error


def rows_sha256(paths: Sequence[str], labels: NDArray, extra: Sequence[str] = ()) -> str:
    """Return the SHA-256 of a list itself: paths, labels and what else identifies the images."""
    digest = hashlib.sha256()
    for path, label in zip(paths, labels.tolist(), strict=True):
        digest.update(f"{path}\0{label}\n".encode())
    for text in extra:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()


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


def _row(path: str, label: object, digest: str, where: str) -> Row:
    try:
        number = UNKNOWN if label in (None, "") else int(str(label))
    except ValueError:
        number = UNKNOWN - 1
    if number < UNKNOWN:
        raise DataError(f"Expected a label of 0 or more, or -1, got {label!r} in {where}.")
    if not path:
        raise DataError(f"Expected a path, got none in {where}.")
    return path, number, digest


def _read_csv(path: Path) -> Iterator[Row]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if "path" not in (rows.fieldnames or ()):
            raise DataError(
                f"Expected the columns path,label in {str(path)!r}, "
                f"got {','.join(rows.fieldnames or ()) or 'none'}."
            )
        for row in rows:
            where = f"line {rows.line_num} of {str(path)!r}"
            yield _row(row["path"], row.get("label"), row.get("sha256") or "", where)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"Cannot read the manifest {str(path)!r}: {error}") from error
    if "path" not in table.column_names:
        raise DataError(
            f"Expected the columns path,label in {str(path)!r}, "
            f"got {','.join(table.column_names) or 'none'}."
        )
    empty = [None] * len(table)
    columns = [
        table[name].to_pylist() if name in table.column_names else empty
        for name in ("path", "label", "sha256")
    ]
    for place, (name, label, digest) in enumerate(zip(*columns, strict=True), 1):
        yield _row(name or "", label, digest or "", f"row {place} of {str(path)!r}")


def _read_imglist(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        for place, line in enumerate(file, 1):
            if line.strip():
                where = f"line {place} of {str(path)!r}"
                parts = line.strip().rsplit(None, 1)
                if len(parts) != 2:
                    raise DataError(f"Expected `path label`, got {line.strip()!r} in {where}.")
                yield _row(parts[0], parts[1], "", where)


def _columns(manifest: Manifest) -> dict[str, Sequence]:
    columns = {"path": list(manifest.paths), "label": manifest.labels.tolist()}
    return {**columns, "sha256": list(manifest.sha256)} if manifest.sha256 else columns


def _write_csv(path: Path, manifest: Manifest) -> None:
    columns = _columns(manifest)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_parquet(path: Path, manifest: Manifest) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(_columns(manifest)), path)


def _write_imglist(path: Path, manifest: Manifest) -> None:
    rows = zip(manifest.paths, manifest.labels.tolist(), strict=True)
    path.write_text("".join(f"{name} {label}\n" for name, label in rows), encoding="utf-8")


_READERS = {".csv": _read_csv, ".parquet": _read_parquet, ".txt": _read_imglist}
_WRITERS = {".csv": _write_csv, ".parquet": _write_parquet, ".txt": _write_imglist}
