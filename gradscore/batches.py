"""How a CPU takes a batch: in which parts, and with the channels first or last in memory."""

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradscore.uses import check_eval_mode

PART_ELEMENTS = 2**20
"""Input elements of one part on a CPU: 6 images of 224 by 224 pixels."""

MOST_SELECTED = 0.5
"""Up to this share of the parameter tensors, a forward and backward are faster channels last."""

_SAME: WeakKeyDictionary[nn.Module, dict[object, bool]] = WeakKeyDictionary()
"""Whether a model computes the same with the channels last, by model and kind of input."""


def parts_of(images: Tensor) -> tuple[Tensor, ...]:
    """Return the images in parts that one forward, or forward and backward, takes at once.

    On a CPU an intermediate result of many large images is more than the memory that the
    allocator keeps (32 MiB at once): each of its pages would be had from the system, and cleared,
    again and again, which can take half of the time. Parts also bound the memory.

    Args:
        images: Shape ``[batch, ...]``, at least one.

    Returns:
        Consecutive parts of about one size, on other devices all images at once.
    """
    if images.device.type != "cpu":
        return (images,)
    most = max(1, PART_ELEMENTS // max(1, images[0].numel()))
    return images.split(-(-len(images) // -(-len(images) // most)))


def memory_format(model: nn.Module, images: Tensor, share: float) -> torch.memory_format:
    """Return the memory format of the images with which a model takes the least time.

    With the channels last, a convolutional network's forward takes 0.75 to 0.95 of the time on a
    CPU, that of a transformer the same. The rules want the channels first, so that it does not
    pay where most parameters' gradients are asked for. Some models, such as those that flatten
    by ``view``, cannot take it: whether the model can, and gives the same logits, is tried once.

    Args:
        model: A classifier in eval mode; it is left as it is found.
        images: Its input, shape ``[batch, ...]``, at least one sample.
        share: Share of the parameter tensors whose gradients are asked for, 0 for a forward alone.

    Raises:
        ModelError: If the model is in train mode.
    """
    plain = images.device.type != "cpu" or images.ndim != 4 or images.dtype == torch.float64
    if plain or share > MOST_SELECTED:
        return torch.contiguous_format
    known = _SAME.setdefault(model, {})
    key = (images.shape[1:], images.dtype, len(images[:2]))
    if key not in known:
        check_eval_mode(model)
        known[key] = _computes_the_same(model, images[:2])
    return torch.channels_last if known[key] else torch.contiguous_format


def _computes_the_same(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            logits = model(images.contiguous())
            others = model(images.contiguous(memory_format=torch.channels_last))
    except Exception:  # if the images are at fault, the forward that follows will say so
        return False
    if not isinstance(logits, Tensor) or logits.shape != others.shape:
        return False
    tolerance = 10 * math.sqrt(torch.finfo(logits.dtype).eps) * float(logits.abs().max())
    return float((logits - others).abs().max()) <= tolerance
