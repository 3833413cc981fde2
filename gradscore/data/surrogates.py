"""Surrogates for OOD images: a user's own ID images, changed until they show nothing known.

Each keeps something of natural images: their colours, their spectrum or their parts. All work on
images as the model takes them, but before normalisation, with values in 0..1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from gradscore.data.identity import rows_sha256
from gradscore.data.labels import UNKNOWN
from gradscore.data.pictures import Picture
from gradscore.data.sources import Chosen, ImageSet, choose

SEED = 0
IMAGES = 200
"""Images of a surrogate set."""
SMALLEST_CELL = 2
"""Pixels along the side of a grid's cell, at least; shuffled pixels would be noise."""

Surrogate = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""``(image, another, rng) -> surrogate``, all images ``[channels, height, width]`` in 0..1."""


def shuffled(image: Tensor, grid: int, rng: torch.Generator) -> Tensor:
    """Return the image with the cells of a grid in another order.

    Sides that the grid does not divide are resized to the nearest that it does, and back.

    Args:
        image: Shape ``[channels, height, width]``.
        grid: Cells along each side.
        rng: Draws the order.
    """
    channels, *sides = image.shape
    rows, columns = (max(1, round(side / grid)) for side in sides)
    whole = _resized(image, (rows * grid, columns * grid))
    cells = whole.reshape(channels, grid, rows, grid, columns).permute(1, 3, 0, 2, 4)
    order = torch.randperm(grid * grid, generator=rng)
    cells = cells.flatten(0, 1)[order].unflatten(0, (grid, grid))
    return _resized(cells.permute(2, 0, 3, 1, 4).reshape(whole.shape), sides)


def phase_scrambled(image: Tensor, rng: torch.Generator) -> Tensor:
    """Return an image of the same amplitude spectrum, with the phase of noise.

    One noise serves all channels, so that colours stay as they go together.
    """
    noise = torch.rand(image.shape[1:], generator=rng)
    return _combined(image, noise.expand_as(image))


def amplitude_swapped(image: Tensor, another: Tensor) -> Tensor:
    """Return an image with the phase of ``image`` and the amplitude spectrum of ``another``."""
    return _combined(another, image)


def inverted(image: Tensor) -> Tensor:
    """Return the negative of an image."""
    return 1 - image


def rotated(image: Tensor) -> Tensor:
    """Return an image turned by 180 degrees."""
    return image.flip(-2, -1)


SURROGATES: dict[str, Surrogate] = {
    "shuffle4": lambda image, another, rng: shuffled(image, 4, rng),
    "shuffle8": lambda image, another, rng: shuffled(image, 8, rng),
    "phase": lambda image, another, rng: phase_scrambled(image, rng),
    "amplitude": lambda image, another, rng: amplitude_swapped(image, another),
    "inverted": lambda image, another, rng: inverted(image),
    "rotated": lambda image, another, rng: rotated(image),
}
"""The far surrogates by name."""
GRIDS = {"shuffle4": 4, "shuffle8": 8}
OF_TWO = ("amplitude",)
"""Surrogates that are made of the next image, too."""


def surrogates_for(height: int, width: int) -> list[str]:
    """Return the names of the surrogates that images of a size have.

    >>> surrogates_for(8, 8)
    ['shuffle4', 'phase', 'amplitude', 'inverted', 'rotated']
    """
    side = min(height, width)
    return [name for name in SURROGATES if side >= SMALLEST_CELL * GRIDS.get(name, 0)]


def make_surrogate(name: str, image: Tensor, another: Callable[[], Tensor], place: int) -> Tensor:
    """Return one surrogate; it depends on the images, the name and the place alone.

    Args:
        name: One of :data:`SURROGATES`.
        image: Shape ``[channels, height, width]``, in 0..1.
        another: Gives the image that lends its amplitudes, where the surrogate takes any.
        place: The image's place in its set, which seeds what is drawn.

    Returns:
        Shape ``[channels, height, width]``, in 0..1.
    """
    rng = torch.Generator().manual_seed(SEED + place)
    lent = another() if name in OF_TWO else image
    return SURROGATES[name](image, lent, rng).clamp(0, 1)


@dataclass(frozen=True)
class _Surrogates:
    """Reads some images of a set, each changed.

    Attributes:
        name: One of :data:`SURROGATES`.
        images: The set.
        places: Which of its images.
        pixels: From a picture to values of 0..1 at the model's input size.
    """

    name: str
    images: ImageSet
    places: NDArray[np.int64]
    pixels: Callable[[Picture], Tensor]

    def read(self, place: int) -> NDArray[np.float32]:
        """Return one surrogate, floats ``[channels, height, width]``."""
        with torch.device("cpu"):
            another = partial(self._image, (place + 1) % len(self.places))
            return make_surrogate(self.name, self._image(place), another, place).numpy()

    def _image(self, place: int) -> Tensor:
        return self.pixels(self.images[int(self.places[place])])


def surrogate_set(name: str, images: ImageSet, pixels: Callable[[Picture], Tensor]) -> ImageSet:
    """Return a set of surrogates of up to :data:`IMAGES` images, spread over their classes.

    A limited set begins with the images that the whole set would choose: the surrogates are the
    same.

    Args:
        name: One of :data:`SURROGATES`.
        images: The set that they are made of.
        pixels: From a picture to values of 0..1 at the model's input size.
    """
    places = np.arange(min(IMAGES, len(images)))
    if len(images) > IMAGES and not isinstance(images.reader, Chosen):
        places, _ = choose(images.paths, images.labels, IMAGES)
    chosen = places.tolist()
    paths = [images.paths[place] for place in chosen]
    contents = [images.contents[place] for place in chosen] if images.contents else ()
    labels, whole = np.full(len(paths), UNKNOWN, np.int64), (*images.whole, f"surrogate {name}")
    digest = rows_sha256(paths, labels, contents, whole)
    reader = _Surrogates(name, images, places, pixels)
    return ImageSet(
        images.source, paths, labels, reader, digest, "", images.max_pixels, contents, whole
    )


def _combined(amplitude: Tensor, phase: Tensor) -> Tensor:
    """Return the image with the amplitude spectrum of one and the phase of another."""
    size = amplitude.shape[-2:]
    angle = torch.fft.rfft2(phase).angle()
    return torch.fft.irfft2(torch.polar(torch.fft.rfft2(amplitude).abs(), angle), s=size)


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(size) == tuple(image.shape[1:]):
        return image
    return interpolate(image[None], tuple(size), mode="bilinear", align_corners=False)[0]
