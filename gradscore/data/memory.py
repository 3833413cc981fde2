"""Images that a user holds in Python: a tensor, a data set or the data set of a loader.

What a model takes is turned back into pictures of 0..1, so that whatever is done to pictures
(surrogates are made of them) is done to these, too. An 8-bit picture comes back as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from gradscore.data.identity import rows_sha256
from gradscore.data.labels import UNKNOWN
from gradscore.data.pictures import Picture
from gradscore.data.sources import SEED, Chosen, ImageSet
from gradscore.errors import DataError, InvalidArgument

BEYOND = 1e-3
"""How far the values of a picture may lie outside of 0..1: rounding."""
EIGHT_BITS = 1e-4
"""How far all values of an 8-bit picture lie from whole numbers of 0..255, at most."""
IMAGE_KEYS = ("pixel_values", "image", "images", "img", "input", "inputs", "x")
"""Under which a data set of mappings holds an image."""
FORMS = "a tensor [n, channels, height, width], a data set of images, or a DataLoader of one"


@dataclass(frozen=True)
class _Held:
    """Reads the images of a tensor or a data set.

    Attributes:
        items: Gives an item by its place.
        collate: What a loader makes of one item in a list, or None.
        mean: Of each channel, in units of a picture; None leaves values as they are.
        std: Deviation of each channel.
    """

    items: Any
    collate: Any = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] = ()

    def read(self, place: int) -> Picture:
        """Return a picture, or floats ``[channels, height, width]``.

        Raises:
            DataError: If an item holds no image, or one that is normalised otherwise.
        """
        with torch.device("cpu"):
            image = self.image(place)
            if isinstance(image, Image.Image):
                return image
            return image.numpy() if self.mean is None else self._picture(image, place)

    def image(self, place: int) -> Tensor | Image.Image:
        """Return an image as the user holds it, on the CPU."""
        item = self.items[place]
        if self.collate is not None:
            item = self.collate([item])
        image = _first(item)
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(image)
        if isinstance(image, Tensor) and self.collate is not None:
            image = image[0]
        if isinstance(image, Image.Image):
            return image
        if not isinstance(image, Tensor) or image.ndim != 3:
            got = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InvalidArgument(
                f"Expected images [channels, height, width] or pictures of PIL, got {got} as item "
                f"{place}; give {FORMS}."
            )
        if not image.is_floating_point():
            raise InvalidArgument(
                f"Expected floating images as the model takes them, got {image.dtype} as item "
                f"{place}; normalise them, or give pictures of PIL."
            )
        return image.detach().float().cpu()

    def _picture(self, image: Tensor, place: int) -> NDArray[np.float32]:
        if len(self.mean or ()) != len(image):
            wanted = f"images of {len(self.mean or ())} channels, as the model takes them"
            raise DataError(f"Expected {wanted}, got {len(image)} (image {place}).")
        mean, std = (
            torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (self.mean, self.std)
        )
        pixels = image.double() * std + mean
        if not bool(((pixels >= -BEYOND) & (pixels <= 1 + BEYOND)).all()):
            low, high = pixels.min().item(), pixels.max().item()
            raise DataError(
                f"image {place}: expected values of 0 to 1 before a normalisation with mean "
                f"{list(self.mean or ())} and std {list(self.std)}, got {low:.4g} to {high:.4g}; "
                "give how they were normalised, `preprocessing={'mean': M, 'std': D}`."
            )
        whole = (pixels * 255).round()
        if bool(((pixels * 255 - whole).abs() <= 255 * EIGHT_BITS).all()):
            return whole.float().div_(255).numpy()  # as it was divided the first time
        return pixels.clamp(0, 1).float().numpy()


def images_in_memory(
    name: str,
    images: Any,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] = (),
) -> ImageSet:
    """Return a set of the images that a user holds in Python.

    Images without labels are taken in an order drawn from a fixed seed: data sets are often sorted
    by class, and the first of them are asked more than the last.

    Args:
        name: What the set is called.
        images: A tensor ``[n, channels, height, width]``; or a data set with a length whose items
            are images, or tuples or mappings that begin with or name one; or a DataLoader of such
            a data set, of which the order and the batches are not used.
        mean: Of each channel, by which floating images were normalised, in units of a picture of
            0..1; None leaves their values as they are.
        std: Deviation of each channel.

    Raises:
        InvalidArgument: If they are anything else, or there is none.
    """
    held = _Held(*_items(images), mean, std)
    count = len(held.items)
    if not count:
        raise InvalidArgument("Expected at least one image, got none.")
    paths, labels = [f"{name}/{place}" for place in range(count)], _labels(images, count)
    reader: Any = held
    if labels is None:
        order = np.random.default_rng(SEED).permutation(count)
        paths, reader = [paths[place] for place in order], Chosen(held, order)
        labels = np.full(count, UNKNOWN, np.int64)
    return ImageSet("memory", paths, labels, reader, rows_sha256(paths, labels))


def first_in_memory(images: Any) -> Tensor | Image.Image:
    """Return the first image as its user holds it.

    Raises:
        InvalidArgument: As :func:`images_in_memory`.
    """
    held = _Held(*_items(images))
    if not len(held.items):
        raise InvalidArgument("Expected at least one image, got none.")
    return held.image(0)


def _items(images: Any) -> tuple[Any, Any]:
    """Return what gives items by their place, and what a loader makes of one.

    Raises:
        InvalidArgument: If that is not known.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images)
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise InvalidArgument(f"Expected {FORMS}, got a tensor {list(images.shape)}.")
        return images, None
    if isinstance(images, DataLoader):
        items, collate = images.dataset, images.collate_fn
    else:
        items, collate = images, None
    sized = hasattr(items, "__len__") and hasattr(items, "__getitem__")
    if isinstance(items, IterableDataset | Mapping | str | bytes) or not sized:
        raise InvalidArgument(
            f"Expected {FORMS}, got {type(items).__name__}; of what has no length or no places "
            "take some thousand images: `torch.cat([...])`."
        )
    return items, collate


def _first(item: Any) -> Any:
    if isinstance(item, Mapping):
        return next((item[key] for key in IMAGE_KEYS if key in item), None)
    return item[0] if isinstance(item, tuple | list) and item else item


def _labels(images: Any, count: int) -> NDArray[np.int64] | None:
    """Return the class numbers that a data set says without reading its images, or None."""
    if isinstance(images, DataLoader):
        images = images.dataset
    if isinstance(images, Subset):
        whole = _labels(images.dataset, len(images.dataset))
        return None if whole is None else whole[np.asarray(images.indices)]
    found = getattr(images, "targets", None)
    if isinstance(images, TensorDataset) and len(images.tensors) > 1:
        found = images.tensors[1]
    try:
        labels = np.asarray(found.cpu() if isinstance(found, Tensor) else found)
    except (ValueError, TypeError):
        return None
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        return None
    return np.maximum(labels.astype(np.int64), UNKNOWN)
