"""Surrogates for OOD images: a user's own ID images, changed until they show nothing known.

Each keeps something of natural images: their colours, their spectrum or their parts. All work on
images as the model takes them, but before normalisation, with values in 0..1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

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


def surrogates_for(height: int, width: int) -> list[str]:
    """Return the names of the surrogates that images of a size have.

    >>> surrogates_for(8, 8)
    ['shuffle4', 'phase', 'amplitude', 'inverted', 'rotated']
    """
    side = min(height, width)
    return [name for name in SURROGATES if side >= SMALLEST_CELL * GRIDS.get(name, 0)]


def make_surrogate(name: str, images: Sequence[Tensor], place: int) -> Tensor:
    """Return one surrogate; it depends on the images, the name and the place alone.

    Args:
        name: One of :data:`SURROGATES`.
        images: All images of the set, each ``[channels, height, width]`` in 0..1.
        place: Which of them is changed; the one after it lends its amplitudes.

    Returns:
        Shape ``[channels, height, width]``, in 0..1.
    """
    rng = torch.Generator().manual_seed(SEED + place)
    another = images[(place + 1) % len(images)]
    return SURROGATES[name](images[place], another, rng).clamp(0, 1)


def _combined(amplitude: Tensor, phase: Tensor) -> Tensor:
    """Return the image with the amplitude spectrum of one and the phase of another."""
    size = amplitude.shape[-2:]
    angle = torch.fft.rfft2(phase).angle()
    return torch.fft.irfft2(torch.polar(torch.fft.rfft2(amplitude).abs(), angle), s=size)


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(size) == tuple(image.shape[1:]):
        return image
    return interpolate(image[None], tuple(size), mode="bilinear", align_corners=False)[0]
