"""Opening a set: from the text that names it to its images, labels and identity."""

import glob
import re
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscore.data.digits import digit_arrays
from gradscore.data.readers import (
    ArchiveMembers,
    ArrayFile,
    Files,
    Items,
    Picture,
    Pictures,
    Reader,
)
from gradscore.errors import DataError
from gradscore.manifest import (
    IMAGE_SUFFIXES,
    SUFFIXES,
    find_images,
    read_manifest,
    rows_sha256,
    split_root,
)
from gradscore.manifest_formats import UNKNOWN

FORMS = (
    "a folder of images, a manifest (.csv, .parquet, .txt, or MANIFEST@ROOT), .npz, .tar, "
    "torchvision:DATASET:SPLIT or digits:SPLIT"
)


@dataclass(frozen=True)
class ImageSet:
    """Images that are decoded when asked for.

    Attributes:
        source: The text that it was opened from.
        paths: A name for each image.
        labels: Shape ``[n]``, int64; -1 unknown.
        reader: What fetches an image.
        sha256: Identity of the list: names, labels, and contents where they are cheap to tell.
        notice: What the user should know about the labels, or empty.
    """

    source: str
    paths: Sequence[str]
    labels: NDArray[np.int64]
    reader: Reader = field(repr=False)
    sha256: str
    notice: str = ""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, place: int) -> Picture:
        """Return an image: a picture of mode ``L`` or ``RGB``, or floats ``[c, h, w]``.

        Raises:
            DataError: If it cannot be read; the message names it.
            IndexError: If there is none at ``place``.
        """
        if not 0 <= place < len(self.paths):
            raise IndexError(f"Expected an image of 0 to {len(self.paths) - 1}, got {place}.")
        return self.reader.read(place)


def open_set(
    source: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    classes: int | None = None,
    labelled: bool = True,
    limit: int | None = None,
) -> ImageSet:
    """Open a set of images.

    Args:
        source: A folder of images; a manifest, or ``MANIFEST@ROOT``; an .npz with ``images`` and
            ``labels``; WebDataset .tar shards (one, or a pattern with ``*`` or ``{000..009}``);
            ``torchvision:DATASET:SPLIT[@ROOT]``; ``digits:SPLIT``.
        class_names: The model's class names; a folder's sub-folders of these names are labels.
        classes: The number of the model's classes; a folder with as many sub-folders takes them,
            sorted, as labels.
        labelled: Whether a folder's sub-folders mean classes (as they do for an ID set).
        limit: Keep only so many images, the first ones.

    Raises:
        DataError: If there is no such set, it is empty, malformed or damaged.
    """
    text = str(source)
    if limit is not None and limit < 1:
        raise DataError(f"Expected a limit of 1 or more images, got {limit}.")
    family = text.partition(":")[0]
    if family in _NAMED:
        paths, labels, reader, extra, notice = _NAMED[family](text)
    elif text.lower().endswith(".npz"):
        paths, labels, reader, extra, notice = _open_arrays(Path(text))
    elif text.lower().endswith(".tar"):
        paths, labels, reader, extra, notice = _open_archives(text)
    elif split_root(text)[0].suffix.lower() in SUFFIXES and not Path(text).is_dir():
        manifest = read_manifest(text)
        paths, labels, notice = manifest.paths, manifest.labels, ""
        reader = Files(manifest.root, paths, manifest.sha256)
        extra = manifest.sha256
    elif Path(text).is_dir():
        paths = find_images(text)
        reader, extra = Files(Path(text), paths), ()
        labels, notice = folder_labels(paths, class_names, classes) if labelled else (None, "")
    else:
        raise DataError(f"No set of images at {text!r}; expected {FORMS}.")
    if labels is None:
        labels = np.full(len(paths), UNKNOWN, np.int64)
    if limit is not None:
        paths, labels, extra = paths[:limit], labels[:limit], list(extra)
        extra = extra[:limit] if len(extra) > limit else extra
    return ImageSet(text, paths, labels, reader, rows_sha256(paths, labels, extra), notice)


_Opened = tuple[Sequence[str], NDArray | None, Reader, Sequence[str], str]


def folder_labels(
    paths: Sequence[str], class_names: Sequence[str] | None, classes: int | None
) -> tuple[NDArray[np.int64], str]:
    """Return the labels that a folder's sub-folders mean, and a notice where they mean none.

    Args:
        paths: Relative paths of the images.
        class_names: The model's class names, or None.
        classes: The number of its classes, or None.

    Returns:
        Labels ``[n]``, and what to tell the user, or an empty text.
    """
    tops = [path.partition("/")[0] if "/" in path else "" for path in paths]
    folders = sorted(set(tops))
    if class_names is not None and set(folders) <= set(class_names):
        number = {name: place for place, name in enumerate(class_names)}
    elif "" not in folders and len(folders) == (len(class_names) if class_names else classes):
        number = {name: place for place, name in enumerate(folders)}
    else:
        told = "no sub-folders"
        if folders != [""]:
            told = (
                f"{len(folders)} sub-folders, whose names are not the model's classes and whose "
                f"number is not theirs ({classes or 'unknown'})"
            )
        notice = f"labels are unknown: {told}"
        return np.full(len(paths), UNKNOWN, np.int64), notice
    return np.array([number[top] for top in tops], np.int64), ""


def _open_digits(text: str) -> _Opened:
    images, labels, names = digit_arrays(text.partition(":")[2])
    return names, labels, Pictures(images), (), ""


def _open_torchvision(text: str) -> _Opened:
    from gradscore.data.torchvision_sets import open_dataset

    dataset, labels = open_dataset(text)
    name = text.partition("@")[0].removeprefix("torchvision:").replace(":", "/")
    paths = [f"{name}/{place}" for place in range(len(dataset))]
    return paths, labels, Items(dataset, name), (), ""


def _open_arrays(path: Path) -> _Opened:
    if not path.is_file():
        raise DataError(f"No file at {str(path)!r}.")
    try:
        with np.load(path, allow_pickle=False) as arrays, zipfile.ZipFile(path) as archive:
            names = arrays.files
            labels = arrays["labels"] if "labels" in names else None
            checksums = [f"{info.filename} {info.CRC:08x}" for info in archive.infolist()]
        images = ArrayFile(path).images if "images" in names else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"Cannot read {str(path)!r}: {error}") from error
    if images is None:
        raise DataError(f"Expected the array images in {str(path)!r}, got {', '.join(names)}.")
    grey = images.dtype == np.uint8 and (images.ndim == 3 or images.shape[3:] in ((1,), (3,)))
    floating = images.ndim == 4 and np.issubdtype(images.dtype, np.floating)
    if not (grey or floating) or len(images) == 0:
        raise DataError(
            "Expected images [n, h, w, c] uint8 or [n, c, h, w] floating, "
            f"got {images.dtype} {list(images.shape)} in {str(path)!r}."
        )
    if labels is not None:
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"Expected whole labels [{len(images)}], "
                f"got {labels.dtype} {list(labels.shape)} in {str(path)!r}."
            )
        labels = np.maximum(labels.astype(np.int64), UNKNOWN)
    paths = [f"{path.name}/{place}" for place in range(len(images))]
    return paths, labels, ArrayFile(path), checksums, ""


def _open_archives(text: str) -> _Opened:
    places, names, labels = [], [], []
    for path in _archive_paths(text):
        try:
            with tarfile.open(path, "r:") as archive:
                members = [member for member in archive if member.isfile()]
                known = {
                    member.name.removesuffix(".cls"): int(archive.extractfile(member).read())
                    for member in members
                    if member.name.endswith(".cls")
                }
        except (OSError, tarfile.TarError, ValueError) as error:
            raise DataError(f"Cannot read the archive {str(path)!r}: {error}") from error
        for member in members:
            if member.name.lower().endswith(IMAGE_SUFFIXES):
                places.append((path, member.offset_data, member.size))
                names.append(member.name)
                # The key of a sample is its name up to the first dot of the last part.
                folder, slash, last = member.name.rpartition("/")
                labels.append(known.get(folder + slash + last.partition(".")[0], UNKNOWN))
    if not places:
        raise DataError(f"No images in the archive {text!r}.")
    sizes = [str(size) for _, _, size in places]
    return names, np.array(labels, np.int64), ArchiveMembers(places, names), sizes, ""


def _archive_paths(text: str) -> list[Path]:
    """Return the archives of a name with at most one ``{000..009}``, or with wildcards."""
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if braces:
        first, last = braces.groups()
        numbers = range(int(first), int(last) + 1)
        names = [text.replace(braces[0], str(n).zfill(len(first))) for n in numbers]
    else:
        names = sorted(glob.glob(text)) if not Path(text).is_file() else [text]
    absent = next((name for name in names if not Path(name).is_file()), None if names else text)
    if absent is not None:
        raise DataError(f"No archive at {absent!r}.")
    return [Path(name) for name in names]


_NAMED: dict[str, Callable[[str], _Opened]] = {
    "digits": _open_digits,
    "torchvision": _open_torchvision,
}
