"""How a CPU takes a batch: in which parts, and with the channels first or last in memory."""

import math
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradscore.uses import check_eval_mode

RESULT_BYTES = 31 * 2**20
"""Size of an intermediate result that the C library's allocator still keeps for the next one."""

MOST_SELECTED = 0.5
"""Up to this share of the parameter tensors, a forward and backward are faster channels last."""


class Trial(NamedTuple):
    """What forwards over one and two images told.

    Attributes:
        channels_last: Whether the model takes the channels last, and gives the same logits.
        image_bytes: Size of the largest intermediate result of one image.
    """

    channels_last: bool
    image_bytes: int


_TRIALS: WeakKeyDictionary[nn.Module, dict[object, Trial]] = WeakKeyDictionary()
"""Trials by model and kind of input: one serves a whole run."""


def parts_of(model: nn.Module, images: Tensor, share: float) -> tuple[Tensor, ...]:
    """Return the images in parts that one forward, or forward and backward, takes at once.

    A CPU's allocator gives intermediate results above 32 MiB back to the system at once: each of
    their pages is had anew, and cleared, again and again, which can take half of the time. Parts
    keep below that; they also bound the memory.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        images: Its input, shape ``[batch, ...]``, at least one sample.
        share: As for :func:`memory_format`, in which the parts are.

    Returns:
        Consecutive parts of about one size, on other devices all images at once.

    Raises:
        ModelError: If the model is in train mode.
    """
    images = images.contiguous(memory_format=memory_format(model, images, share))
    if images.device.type != "cpu":
        return (images,)
    most = max(1, RESULT_BYTES // max(1, _trial(model, images).image_bytes))
    return images.split(-(-len(images) // -(-len(images) // most)))


def memory_format(model: nn.Module, images: Tensor, share: float) -> torch.memory_format:
    """Return the memory format of the images with which a model takes the least time.

    With the channels last, a convolutional network's forward takes 0.75 to 0.95 of the time on a
    CPU, that of a transformer the same. The rules want the channels first, so that it does not
    pay where most parameters' gradients are asked for. Some models, such as those that flatten
    by ``view``, cannot take it: whether the model can is tried once.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        images: Its input, shape ``[batch, ...]``, at least one sample.
        share: Share of the parameter tensors whose gradients are asked for, 0 for a forward alone.

    Raises:
        ModelError: If the model is in train mode.
    """
    plain = images.device.type != "cpu" or images.ndim != 4 or images.dtype == torch.float64
    if plain or share > MOST_SELECTED or not _trial(model, images).channels_last:
        return torch.contiguous_format
    return torch.channels_last


def _trial(model: nn.Module, images: Tensor) -> Trial:
    known = _TRIALS.setdefault(model, {})
    key = (images.shape[1:], images.dtype)
    if key not in known:
        check_eval_mode(model)
        two = images[:2] if len(images) > 1 else torch.cat([images, images])
        known[key] = _try(model, two.contiguous())
    return known[key]


def _try(model: nn.Module, images: Tensor) -> Trial:
    try:
        _, sizes = _observed(model, images[:1])
        logits, of_two = _observed(model, images)
    except Exception:  # if the images are at fault, the forward that follows will say so
        return Trial(channels_last=False, image_bytes=images[0].nbytes)
    if len(sizes) == len(of_two):
        # What does not grow with the images, such as weights made in the forward, is no matter.
        of_two = [2 * (more - less) for less, more in zip(sizes, of_two, strict=True)]
    largest = max(images.nbytes, *of_two) // 2
    return Trial(_same_with_channels_last(model, images, logits), largest)


def _same_with_channels_last(model: nn.Module, images: Tensor, logits: object) -> bool:
    if images.ndim != 4 or not isinstance(logits, Tensor):
        return False
    try:
        with torch.no_grad():
            others = model(images.contiguous(memory_format=torch.channels_last))
    except Exception:  # such a model needs the channels first, whatever it says
        return False
    tolerance = 10 * math.sqrt(torch.finfo(logits.dtype).eps) * float(logits.abs().max())
    return others.shape == logits.shape and float((logits - others).abs().max()) <= tolerance


def _observed(model: nn.Module, images: Tensor) -> tuple[object, list[int]]:
    """Return a model's output, and the bytes of what each operation on the way made."""
    sizes = _Sizes()
    with torch.no_grad(), sizes:
        return model(images), sizes.made


class _Sizes(TorchDispatchMode):
    """Note the size of the largest result of each operation that runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        self.made.append(max((tensor.nbytes for tensor in tensors), default=0))
        return result
