"""Batches of other compositions: the samples of one batch among other samples."""

from collections.abc import Iterator

import torch
from torch import Tensor

Composition = tuple[Tensor, Tensor, Tensor]
"""A batch, numbers of samples of the first batch, and where these stand in it."""


def rearranged(images: Tensor, *, wild: bool) -> Iterator[Composition]:
    """Yield every sample of a batch in another order among companions.

    Where companions may have no values that the batch has not, this is in two halves, each with
    companions of its own values: the largest of one of them is then another.

    Args:
        images: The batch, shape ``[batch, ...]``.
        wild: Whether values out of the batch's range may be tried; never of whole numbers.
    """
    order = _order(images)
    if wild and _is_continuous(images):
        companions, places = _companions(images, wild), _places(images, 4, len(images))
        yield torch.cat([companions[:4], images[order], companions[4:]]), order, places
        return
    half = len(images) // 2
    for numbers in (order[half:], order[:half]):
        if len(numbers):
            companions = _companions(images[numbers], wild)
            places = _places(images, 1, len(numbers))
            yield torch.cat([companions[2:3], images[numbers], companions[3:6]]), numbers, places


def extremes(images: Tensor, numbers: Tensor, *, wild: bool) -> Iterator[Composition]:
    """Yield a batch in which some samples stand backwards among companions, one of them twice.

    Args:
        images: The batch, shape ``[batch, ...]``.
        numbers: Which of its samples.
        wild: As for :func:`rearranged`.
    """
    companions, back = _companions(images, wild), numbers.flip(0)
    batch = torch.cat([companions[4:5], images[back], images[back[:1]], companions[:2]])
    yield batch, back, _places(images, 1, len(back))


def alone(images: Tensor, numbers: Tensor) -> Iterator[Composition]:
    """Yield some samples, each as a batch of its own."""
    first = torch.zeros(1, dtype=torch.long, device=images.device)
    for number in numbers:
        yield images[number][None], number[None], first


def substitutes(images: Tensor, *, wild: bool) -> Iterator[Composition]:
    """Yield batches of the same size: the samples in another order, then half of them replaced.

    Args:
        images: The batch, shape ``[batch, ...]``.
        wild: As for :func:`rearranged`.
    """
    companions, order = _companions(images, wild), _order(images)
    places = _places(images, 0, len(images))
    yield images[order], order, places
    for replaced, kept in ((places[::2], places[1::2]), (places[1::2], places[::2])):
        if len(kept) and len(replaced):
            batch = images[order]
            batch[replaced] = companions[torch.arange(len(replaced)) % len(companions)]
            yield batch, order[kept], kept


def synthetic_samples(images: Tensor) -> Tensor | None:
    """Return samples unlike those of a batch, ``[7, ...]``, or None where none can be made.

    What only certain values set off, in a sample of the batch or in another, may show in them.
    """
    if not (_is_continuous(images) and images[0].numel()):
        return None
    return _companions(images, wild=True)


def _is_continuous(images: Tensor) -> bool:
    """Say whether images take values that they have not, as token ids do not."""
    return images.is_floating_point() or images.is_complex()


def _places(images: Tensor, first: int, count: int) -> Tensor:
    return torch.arange(first, first + count, device=images.device)


def _order(images: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randperm(len(images), generator=draw).to(images.device)


def _companions(images: Tensor, wild: bool) -> Tensor:
    """Return samples unlike those of a batch, shape ``[7, ...]``."""
    one, draw = images[0], torch.Generator().manual_seed(2)
    if not one.numel():
        return images[:1].expand(7, *one.shape)
    if wild and _is_continuous(images):
        size = images.nan_to_num(posinf=0.0, neginf=0.0).abs().amax()
        noise = torch.randn((3, *one.shape), generator=draw, dtype=torch.float64)
        noise *= torch.tensor([1, 0.1, 30.0]).reshape(3, *[1] * one.ndim)
        zero = torch.zeros_like(one)
        large = zero + (3 * size + 1)
        flipped = one.flip(0, -1) if one.ndim > 1 else one.flip(0)
        return torch.cat([torch.stack([large, -large, zero, flipped]), noise.to(images) * size])
    values = images.flatten()
    drawn = torch.randint(len(values), (5, one.numel()), generator=draw).to(values.device)
    least, largest = (bound.expand(1, one.numel()) for bound in torch.aminmax(values))
    return torch.cat([largest, least, values[drawn]]).reshape(7, *one.shape)
