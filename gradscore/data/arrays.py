"""Images in NumPy files: .npz of any common naming, and .npy with its labels beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradscore.data.labels import UNKNOWN, Wanted, check_number, class_numbers
from gradscore.data.manifest import file_sha256
from gradscore.data.pictures import Opened, Picture
from gradscore.errors import DataError
from gradscore.files import near_path
from gradscore.numpy_files import load_npy, open_npz

SUFFIXES = (".npz", ".npy")
IMAGE_KEYS = ("images", "image", "imgs", "x", "data", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "targets", "target", "arr_1")
SEVERITIES = 5
CORRUPTED = (50_000, 32, 32, 3)
"""Shape of each file of CIFAR-10-C: the same 10,000 images at five severities."""
SCANNED_BYTES = 1 << 26
ROUNDING = 1e-3
"""Floats may leave 0..1 by so much, as resampling and rounding make them."""


class ArrayFile:
    """Images of an .npy, or of an array of an .npz: uint8, or floats in 0..1.

    Stored without compression they are read in place; compressed ones are held in memory, once a
    process.

    Args:
        path: The file.
        key: Name of the array in an .npz; None for an .npy.
        start: Where the set begins in the array.
        channels_first: Whether an image is ``[c, h, w]``, not ``[h, w]`` or ``[h, w, c]``.
    """

    def __init__(
        self, path: Path, key: str | None, start: int = 0, *, channels_first: bool = False
    ) -> None:
        self.path, self.key, self.start = path, key, start
        self.channels_first = channels_first
        self._images: NDArray | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the array to be opened again by the process that receives this."""
        return {**self.__dict__, "_images": None}

    @property
    def images(self) -> NDArray:
        """The whole array, mapped from the file where it can be."""
        if self._images is None:
            try:
                self._images = array_in(self.path, self.key)
            except (OSError, ValueError) as error:  # it was sound when the set was opened
                raise DataError(f"Cannot read {str(self.path)!r}: {error}") from error
        return self._images

    def read(self, place: int) -> Picture:
        """Return one picture, or a float array ``[channels, height, width]``."""
        image = self.images[self.start + place]
        if image.ndim == 2:
            image = image[None]
        elif not self.channels_first:
            image = image.transpose(2, 0, 1)
        if image.dtype != np.uint8:
            return np.array(image, np.float32)
        if len(image) == 1:
            return Image.fromarray(np.ascontiguousarray(image[0]))
        return Image.fromarray(np.ascontiguousarray(image[:3].transpose(1, 2, 0)))


def array_in(path: Path, key: str | None, *, check: bool = False) -> NDArray:
    """Return an array of a file, in its place there where it can be.

    Args:
        path: An .npz, or an .npy.
        key: Name of the array in an .npz; None for an .npy.
        check: Whether the checksum of an array that stays in the file is compared.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is damaged or cannot be read safely.
    """
    if key is None:
        return load_npy(path, mapped=True)
    with open_npz(path) as arrays:
        mapped = arrays.mapped(key, check=check)
        return arrays.read(key) if mapped is None else mapped


def split_part(text: str) -> tuple[str, str]:
    """Return a path and the part of it that is meant, from ``FILE#PART``.

    >>> split_part("med.npz#test"), split_part("a#b/fog.npy")
    (('med.npz', 'test'), ('a#b/fog.npy', ''))
    """
    path, mark, part = text.rpartition("#")
    if mark and path.lower().endswith(SUFFIXES) and not Path(text).exists():
        return path, part
    return text, ""


def open_arrays(text: str, wanted: Wanted) -> Opened:
    """Open the images of ``FILE.npz[#PART]`` or ``FILE.npy[#SEVERITY]``.

    Raises:
        DataError: If there is no such file or part, or the arrays are no images and labels.
    """
    source, part = split_part(text)
    path = Path(source)
    if not path.is_file():
        raise DataError(f"No file at {source!r}.{near_path(source)}")
    try:
        if path.suffix.lower() == ".npy":
            key, labels, notices, whole = None, *_beside(path), [file_sha256(path)]
        else:
            key, labels, whole = _members(path, part)
            notices = []
        images = array_in(path, key, check=True)
    except (OSError, ValueError) as error:
        raise DataError(f"Cannot read {source!r}: {error}") from error
    if key is None and labels is not None and len(labels) != len(images):
        notices = [f"labels are unknown: {len(labels):,} stand beside {len(images):,} images"]
        labels = None
    first = _channels_first(images, source)
    rows = slice(0, len(images))
    if key is None and part:
        rows = _severity(part, len(images), source)
    elif key is None and images.shape == CORRUPTED:
        notices.append(f"all five severities together; {path.name}#1 to #5 take one")
    _refuse_unscaled(images[rows], source)
    numbers, notice = _numbers(labels, len(images), source, wanted)
    names = [f"{path.name}/{place}" for place in range(rows.start, rows.stop)]
    return Opened(
        names,
        None if numbers is None else numbers[rows],
        ArrayFile(path, key, rows.start, channels_first=first),
        whole=whole,
        notices=[*notices, notice],
    )


def _members(path: Path, part: str) -> tuple[str, NDArray | None, list[str]]:
    """Return the name of an .npz's images, its labels or None, and checksums of its members."""
    with open_npz(path) as arrays:
        image_key, label_key = _keys(arrays.names, part, path)
        labels = arrays.read(label_key) if label_key else None
        chosen = [image_key, label_key] if part else None
        return image_key, labels, arrays.checksums(chosen)


def _keys(names: Sequence[str], part: str, path: Path) -> tuple[str, str | None]:
    """Return which arrays hold the images and the labels; None where there are none.

    Raises:
        DataError: Naming the arrays that are there, and how to choose.
    """
    lower = {name.lower(): name for name in names}

    def first(keys: Sequence[str], part: str) -> str | None:
        forms = [f"{part}_{{}}", f"{{}}_{part}"] if part else ["{}"]
        tried = (form.format(key) for key in keys for form in forms)
        return next((lower[key] for key in tried if key in lower), None)

    image_key = first(IMAGE_KEYS, part.lower()) or (part if part in names else None)
    if image_key is None:
        parts = [name for name in ("train", "val", "test") if first(IMAGE_KEYS, name)]
        choose = f"#{', #'.join(parts)} behind the file name" if parts else "#NAME of the array"
        expected = f"a part {part!r} of images" if part else "the array images"
        raise DataError(
            f"Expected {expected} in {str(path)!r}, got {', '.join(names)}; choose by {choose}."
        )
    return image_key, first(LABEL_KEYS, part.lower() if image_key != part else "")


def _beside(path: Path) -> tuple[NDArray | None, list[str]]:
    """Return the labels in the file beside an .npy of images, and a notice about where from."""
    stem = path.stem
    renamed = [stem.replace(word, "labels") for word in ("images", "image", "data")]
    renamed += [f"y{stem[1:]}"] if stem.lower().startswith("x_") else []
    for name in dict.fromkeys([*renamed, f"{stem}_labels", "labels"]):
        beside = path.with_name(f"{name}.npy")
        if beside != path and beside.is_file():
            return load_npy(beside), [f"labels of {beside.name}"]
    return None, []


def _severity(part: str, count: int, source: str) -> slice:
    if not (part.isdecimal() and 1 <= int(part) <= SEVERITIES and count % SEVERITIES == 0):
        raise DataError(
            f"Expected #1 to #{SEVERITIES}, one of {SEVERITIES} equal severities, behind "
            f"{source!r}, got #{part} of {count} images."
        )
    size = count // SEVERITIES
    return slice((int(part) - 1) * size, int(part) * size)


def _channels_first(images: NDArray, source: str) -> bool:
    """Return whether images are ``[n, c, h, w]``, not ``[n, h, w]`` or ``[n, h, w, c]``.

    Raises:
        DataError: If they are no images.
    """
    floating = np.issubdtype(images.dtype, np.floating)
    whole = np.issubdtype(images.dtype, np.integer) or images.dtype == bool
    first = images.ndim == 4 and images.shape[1] in (1, 3)
    last = images.ndim == 4 and images.shape[3] in ((1, 3) if floating else (1, 3, 4))
    if not (floating or whole) or not (images.ndim == 3 or first or last) or images.size == 0:
        raise DataError(
            "Expected images [n, h, w], [n, h, w, c] or [n, c, h, w], uint8 or floating, "
            f"got {images.dtype} {list(images.shape)} in {source!r}."
        )
    return first and (floating or not last)


def _refuse_unscaled(images: NDArray, source: str) -> None:
    """Raise unless images are uint8, or floats in 0..1.

    Raises:
        DataError: Naming the range found, and what to store instead.
    """
    if images.dtype == np.uint8:
        return
    low, high = _range(images)
    floating = np.issubdtype(images.dtype, np.floating)
    if floating and low >= -ROUNDING and high <= 1 + ROUNDING:
        return
    eight_bits = low >= 0 and high <= 255
    if images.dtype == bool:
        hint = "store images.astype('uint8') * 255"
    elif eight_bits and not floating:
        hint = "store images.astype('uint8')"
    elif eight_bits:
        hint = "divide by 255 where 255 is white, or store uint8"
    elif low < 0:
        hint = "store them before normalisation, which is the model's `preprocessing`"
    else:
        hint = "divide by the value that is white, and store floats"
    raise DataError(
        f"Expected images of uint8, or floats in 0..1, in {source!r}, got {images.dtype} from "
        f"{low:.6g} to {high:.6g}; {hint}."
    )


def _range(images: NDArray) -> tuple[float, float]:
    """Return the least and the largest value, read part by part; NaN is reported later."""
    rows = max(1, SCANNED_BYTES // max(1, images[0].nbytes))
    parts = [images[start : start + rows] for start in range(0, len(images), rows)]
    low = np.fmin.reduce([np.fmin.reduce(part, None) for part in parts])
    high = np.fmax.reduce([np.fmax.reduce(part, None) for part in parts])
    return float(low), float(high)


def _numbers(
    labels: NDArray | None, count: int, source: str, wanted: Wanted
) -> tuple[NDArray[np.int64] | None, str]:
    """Return class numbers ``[n]``, or None with the reason."""
    if labels is None:
        return None, ""
    if labels.ndim == 2 and labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.ndim == 2 and len(labels) == count and np.issubdtype(labels.dtype, np.number):
        if ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all():
            return labels.argmax(axis=1), ""
        return None, f"labels are unknown: {labels.shape[1]} values an image, not one class"
    if labels.shape != (count,) or not _are_labels(labels):
        raise DataError(
            f"Expected whole labels [{count}], or class names, "
            f"got {labels.dtype} {list(labels.shape)} in {source!r}."
        )
    if np.issubdtype(labels.dtype, np.integer):
        check_number(int(max(labels.max(), UNKNOWN)), labels.max(), repr(source))
        return np.maximum(labels.astype(np.int64), UNKNOWN), ""
    listed: list[Any] = labels.tolist()
    if labels.dtype.kind == "S":
        listed = [label.decode(errors="replace") for label in listed]
    return class_numbers(listed, wanted.class_names, wanted.classes)


def _are_labels(labels: NDArray) -> bool:
    if np.issubdtype(labels.dtype, np.floating):
        return bool((np.isnan(labels) | (labels == np.floor(labels))).all())
    return labels.dtype.kind in "iuSU"
