"""The embedded sets: scikit-learn's handwritten digits, and three kinds of images that are none.

The packaged model knows the digits 0 to 5. Of these every third image is held out (``test``), the
others train it (``train``). Unknown to it are the digits 6 to 9 (``unseen``), grey patches of
scikit-learn's two sample photographs (``photos``) and uniform noise (``noise``).
"""

from functools import cache

import numpy as np

from gradscore.errors import DataError

SPLITS = ("test", "train", "unseen", "photos", "noise")
KNOWN_CLASSES = 6
SIDE = 8
NOISE_IMAGES = 500
PHOTO_REDUCTION = 4


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
    return images, np.full(len(images), -1, np.int64), [f"{split}/{i}" for i in range(len(images))]


def _digits(split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    known = digits.target < KNOWN_CLASSES
    if split == "unseen":
        rows = np.flatnonzero(~known)
        labels = np.full(len(rows), -1, np.int64)
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
