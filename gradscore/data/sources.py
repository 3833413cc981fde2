"""Opening a set: from the text that names it to its images, labels and identity."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscore.data import archives, arrays, named, tables
from gradscore.data.folders import open_folder
from gradscore.data.identity import rows_sha256
from gradscore.data.labels import UNKNOWN, ClassNames, Wanted
from gradscore.data.manifest import SUFFIXES, open_list, split_root
from gradscore.data.pictures import Opened, Picture, Reader, pixels_up_to
from gradscore.data.texts import some_of
from gradscore.errors import DataError, near_name
from gradscore.files import near_path

SEED = 0
"""Of the choice of some images from all of a set."""
FORMS = (
    "a folder of images, a list (.csv, .parquet, .txt, or LIST@ROOT), .npz or .npy, .tar or "
    ".tar.gz, .parquet with images in it, torchvision:DATASET:SPLIT or digits:SPLIT"
)


@dataclass(frozen=True)
class ImageSet:
    """Images that are decoded when asked for.

    Attributes:
        source: The text that it was opened from.
        paths: A name for each image.
        labels: Shape ``[n]``, int64; -1 unknown.
        reader: What fetches an image.
        sha256: Identity of the list: names, labels, and contents where they are cheap to identify.
        notice: What the user should know about the images and labels, or empty.
        max_pixels: Larger pictures are refused; None leaves Pillow's own limit.
        contents: What identifies the content of each image, or empty.
        whole: What identifies the content of all of them together.
    """

    source: str
    paths: Sequence[str]
    labels: NDArray[np.int64]
    reader: Reader = field(repr=False)
    sha256: str
    notice: str = ""
    max_pixels: int | None = None
    contents: Sequence[str] = field(default=(), repr=False)
    whole: Sequence[str] = field(default=(), repr=False)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def beginning_sha256(self, count: int) -> str:
        """Return the identity of a list of the first ``count`` images alone."""
        paths, labels, contents = (
            listed[:count] for listed in (self.paths, self.labels, self.contents)
        )
        return rows_sha256(paths, labels, contents, self.whole)

    def __getitem__(self, place: int) -> Picture:
        """Return an image: a picture of mode ``L`` or ``RGB``, or floats ``[c, h, w]``.

        Raises:
            DataError: If it cannot be read; the message names it.
            IndexError: If there is none at ``place``.
        """
        if not 0 <= place < len(self.paths):
            raise IndexError(f"Expected an image of 0 to {len(self.paths) - 1}, got {place}.")
        with pixels_up_to(self.max_pixels):
            return self.reader.read(place)


def open_set(
    source: str | Path | ImageSet,
    *,
    class_names: ClassNames | None = None,
    classes: int | None = None,
    labelled: bool = True,
    limit: int | None = None,
    max_pixels: int | None = None,
) -> ImageSet:
    """Open a set of images.

    Args:
        source: A folder of images; a manifest, or ``MANIFEST@ROOT``; an .npz with ``images`` and
            ``labels``, or ``FILE.npz#PART``; an .npy with its labels beside it; WebDataset .tar
            shards (one, or a pattern with ``*`` or ``{000..009}``); .parquet files with images in
            them (likewise);
            ``torchvision:DATASET:SPLIT[@ROOT]``; ``digits:SPLIT``. An open set is returned as it
            is.
        class_names: The model's class names, in order or with their numbers; labels and
            sub-folders of these names are classes.
        classes: The number of the model's classes; as many names of labels or sub-folders are
            taken, sorted, as classes.
        labelled: Whether a folder's sub-folders mean classes (as they do for an ID set).
        limit: Keep only so many images, spread over the classes (or folders) by a fixed seed;
            fewer are the first ones of more.
        max_pixels: Refuse larger pictures; by default those beyond Pillow's own limit.

    Raises:
        DataError: If there is no such set, it is empty, malformed or damaged.
    """
    if isinstance(source, ImageSet):
        return source
    text = str(source)
    for what, value in (("a limit of 1 or more images", limit), ("max_pixels > 0", max_pixels)):
        if value is not None and value < 1:
            raise DataError(f"Expected {what}, got {value}.")
    opened = _opener(text)(text, Wanted(class_names, classes, labelled))
    paths, labels, reader = opened.paths, opened.labels, opened.reader
    contents, notices = opened.contents, list(opened.notices)
    if labels is None:
        labels = np.full(len(paths), UNKNOWN, np.int64)
    if limit is not None and limit < len(paths):
        chosen, how = choose(paths, labels, limit)
        notices.append(f"{limit:,} of {len(paths):,} images, {how}")
        paths, contents = (some_of(listed, chosen) for listed in (paths, contents))
        labels, reader = labels[chosen], Chosen(reader, chosen)
    digest = rows_sha256(paths, labels, contents, opened.whole)
    notice = "; ".join(filter(None, notices))
    return ImageSet(
        text, paths, labels, reader, digest, notice, max_pixels, contents, opened.whole
    )


class Chosen:
    """Reads some of another reader's images, in an order of their own."""

    def __init__(self, reader: Reader, places: NDArray[np.int64]) -> None:
        self.reader, self.places = reader, places

    def read(self, place: int) -> Picture:
        """Return one of the chosen images."""
        return self.reader.read(int(self.places[place]))


def choose(
    paths: Sequence[str], labels: NDArray[np.int64], limit: int
) -> tuple[NDArray[np.int64], str]:
    """Return the places of ``limit`` images, and a notice about how they were chosen.

    They are spread over the classes, or over the folders where no label is known, by a fixed seed.
    Fewer images are always the first ones of more. Images of one class or folder are taken in
    their order.

    Args:
        paths: Names of the set's images.
        labels: Their labels, -1 unknown.
        limit: How many to choose, fewer than there are.
    """
    known = labels != UNKNOWN
    groups, what = (labels, "classes") if known.any() else (_folders(paths), "folders")
    number = len(np.unique(groups[known] if known.any() else groups))
    order = spread(groups) if number > 1 else np.arange(len(paths))
    order = np.concatenate([order[known[order]], order[~known[order]]])
    notice = f"spread over {number:,} {what} by a fixed seed" if number > 1 else "the first ones"
    return order[:limit], notice


def _folders(paths: Sequence[str]) -> NDArray[np.int64]:
    numbers: dict[str, int] = {}
    folders = (path.rpartition("/")[0] for path in paths)
    return np.array([numbers.setdefault(folder, len(numbers)) for folder in folders])


def spread(groups: NDArray) -> NDArray[np.int64]:
    """Return all places in an order whose every beginning holds the groups in equal shares.

    Both the groups' turns and the order within each are drawn from a fixed seed.

    >>> groups = np.array([5, 5, 5, 5, 7, 7])
    >>> groups[spread(groups)].tolist()
    [7, 5, 7, 5, 5, 5]
    """
    rng = np.random.default_rng(SEED)
    shuffled = rng.permutation(len(groups))
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    turns = rng.permutation(len(counts))
    by_group = shuffled[np.argsort(group[shuffled], kind="stable")]
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    round_of = np.empty(len(groups), np.int64)
    round_of[by_group] = np.arange(len(groups)) - starts
    return np.lexsort((turns[group], round_of))


def _opener(text: str) -> Callable[[str, Wanted], Opened]:
    """Return what opens the images that a text names.

    Raises:
        DataError: If nothing does.
    """
    family, lower = text.partition(":")[0], text.lower()
    if family in _NAMED:
        return _NAMED[family]
    if arrays.split_part(text)[0].lower().endswith(arrays.SUFFIXES):
        return arrays.open_arrays
    if lower.endswith(archives.SUFFIXES):
        return archives.open_archives
    if tables.holds_images(text):
        return tables.open_tables
    if split_root(text)[0].suffix.lower() in SUFFIXES and not os.path.isdir(text):
        return open_list
    if os.path.isdir(text):  # False, not an error, for what no name can be
        return open_folder
    if not (os.path.exists(text) or ":" in text):
        raise DataError(f"No such file or folder: {text!r}.{near_path(text)}")
    unpack = " Unpack it to a folder." if lower.endswith((".zip", ".7z", ".rar")) else ""
    near = near_name(family, _NAMED) if ":" in text else ""
    raise DataError(f"No set of images at {text!r}; expected {FORMS}.{unpack}{near}")


_NAMED: dict[str, Callable[[str, Wanted], Opened]] = {
    "digits": named.open_digits,
    "torchvision": named.open_torchvision,
}
