"""Sets by name: the embedded ones (``digits:test``), and those of torchvision.

Embedded are scikit-learn's handwritten digits, and three kinds of images that are none.

The packaged model knows the digits 0 to 5. Of these every third image is held out (``test``), the
others train it (``train``). Unknown to it are the digits 6 to 9 (``unseen``), grey patches of
scikit-learn's two sample photographs (``photos``) and uniform noise (``noise``).
"""

import inspect
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.data.labels import UNKNOWN, Wanted
from gradscore.data.pictures import Items, Opened, Pictures, load_image
from gradscore.errors import DataError, reason_of

SPLITS = ("test", "train", "unseen", "photos", "noise")
KNOWN_CLASSES = 6
SIDE = 8
NOISE_IMAGES = 500
PHOTO_REDUCTION = 4
TORCHVISION_ROOT = "data"
UNSAFE = ("LSUN", "LSUNClass")
"""Of torchvision: they unpickle whatever file of the right name lies below their root."""


def open_digits(text: str, wanted: Wanted) -> Opened:
    """Open the embedded set ``digits:SPLIT``.

    Raises:
        DataError: If there is no such split.
    """
    images, labels, names = digit_arrays(text.partition(":")[2])
    return Opened(names, labels, Pictures(images))


def open_torchvision(text: str, wanted: Wanted) -> Opened:
    """Open the images of ``torchvision:DATASET:SPLIT[@ROOT]``.

    Raises:
        DataError: As :func:`open_dataset` does.
    """
    dataset, labels = open_dataset(text)
    name = text.partition("@")[0].removeprefix("torchvision:").replace(":", "/")
    paths = [f"{name}/{place}" for place in range(len(dataset))]
    return Opened(paths, labels, Items(dataset, name))


@cache
def digit_arrays(split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return one embedded set.

    Args:
        split: One of :data:`SPLITS`.

    Returns:
        Grey images ``[n, 8, 8]`` uint8, labels ``[n]`` int64 (-1 where the model knows no class
        for them), and a name for each image, stable between versions.

    Raises:
        DataError: If ``split`` is unknown.
    """
    if split not in SPLITS:
        raise DataError(f"Expected digits:{' | digits:'.join(SPLITS)}, got digits:{split}.")
    if split == "photos":
        images = _photo_patches()
    elif split == "noise":
        shape = (NOISE_IMAGES, SIDE, SIDE)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    else:
        return _digits(split)
    return (
        images,
        np.full(len(images), UNKNOWN, np.int64),
        [f"{split}/{i}" for i in range(len(images))],
    )


def _digits(split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    known = digits.target < KNOWN_CLASSES
    if split == "unseen":
        rows = np.flatnonzero(~known)
        labels = np.full(len(rows), UNKNOWN, np.int64)
    else:
        rows = np.flatnonzero(known)
        held_out = np.arange(len(rows)) % 3 == 0
        rows = rows[held_out if split == "test" else ~held_out]
        labels = digits.target[rows].astype(np.int64)
    images = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)
    return images, labels, [f"digits/{row}" for row in rows]


def _photo_patches() -> np.ndarray:
    """Return patches that do not overlap, of the photographs averaged down and turned grey."""
    from sklearn.datasets import load_sample_images

    step = SIDE * PHOTO_REDUCTION
    patches = []
    for photo in load_sample_images().images:
        grey = photo.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
        high, wide = grey.shape[0] // step, grey.shape[1] // step
        tiles = grey[: high * step, : wide * step].reshape(
            high, SIDE, PHOTO_REDUCTION, wide, SIDE, PHOTO_REDUCTION
        )
        patches.append(tiles.mean(axis=(2, 5)).transpose(0, 2, 1, 3).reshape(-1, SIDE, SIDE))
    return np.rint(np.concatenate(patches)).astype(np.uint8)


def open_dataset(source: str) -> tuple[Any, NDArray[np.int64] | None]:
    """Return a torchvision dataset and its labels, where they are listed.

    What is not below ROOT (``data`` by default) is fetched, where torchvision can.

    Raises:
        DataError: If there is no such dataset or split, or it cannot be had.
    """
    from torchvision import datasets

    text, _, root = source.partition("@")
    _, _, rest = text.partition(":")
    name, _, split = rest.partition(":")
    if name not in datasets.__all__ or not isinstance(getattr(datasets, name), type):
        known = ", ".join(sorted(datasets.__all__))
        raise DataError(f"Expected a dataset of torchvision ({known}), got {name!r}.")
    if name in UNSAFE:
        raise DataError(f"torchvision:{name} would run code that its files may hold.")
    family = getattr(datasets, name)
    accepted = inspect.signature(family).parameters
    options: dict[str, Any] = {}
    if "split" in accepted and split:
        options["split"] = split
    elif "train" in accepted and split in ("train", "test"):
        options["train"] = split == "train"
    elif split not in ("", "all"):
        raise DataError(f"Expected torchvision:{name} (it has no such split), got {source!r}.")
    if "loader" in accepted:
        options["loader"] = load_image
    if "root" in accepted:
        options["root"] = root or TORCHVISION_ROOT
    try:
        dataset = _construct(family, options, fetch="download" in accepted)
        return dataset, _item_labels(dataset)
    except Exception as error:  # each dataset has its own kinds
        raise DataError(f"Cannot open {source}: {reason_of(error)}") from error


def _item_labels(dataset: Any) -> NDArray[np.int64] | None:
    """Return a label an item, where they are listed as whole numbers."""
    for attribute in ("targets", "labels", "_labels"):
        labels = np.asarray(getattr(dataset, attribute, ()))
        if labels.shape == (len(dataset),) and np.issubdtype(labels.dtype, np.integer):
            return labels.astype(np.int64)
    return None


def _construct(family: type, options: dict[str, Any], fetch: bool) -> Any:
    try:
        return family(**options)
    except (RuntimeError, FileNotFoundError):
        if not fetch:
            raise
        return family(**options, download=True)
