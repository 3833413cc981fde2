"""How a CPU takes a batch: in which parts, and with the channels first or last in memory."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gradscore.network import check_eval_mode, dry_run, state_of
from gradscore.outputs import logits_of

RESULT_BYTES = 31 * 2**20
"""Size of an intermediate result that the C library's allocator still keeps for the next one."""

MOST_SELECTED = 0.5
"""Up to this share of the parameter tensors, a forward and backward are faster channels last."""

LEAST_CHANNELS_LAST = 0.1
"""Share of all results, in bytes, that a model must keep channels last for it to be of use."""

Fact = TypeVar("Fact")


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
        Consecutive parts of about one size, larger ones first; on other devices all images as
        they are.

    Raises:
        ModelError: If the model is in train mode.
    """
    if images.device.type != "cpu":
        return (images,)
    if images.ndim == 4:
        images = images.contiguous(memory_format=memory_format(model, images, share))
    if len(images) == 1:
        return (images,)
    of_one = _found_once(_image_bytes, model, images, otherwise=images[0].nbytes)
    return images.tensor_split(-(-len(images) // max(1, RESULT_BYTES // max(1, of_one))))


def memory_format(model: nn.Module, images: Tensor, share: float) -> torch.memory_format:
    """Return the memory format of the images with which a model takes the least time.

    With the channels last, a convolutional network's forward takes 0.75 to 0.95 of the time on a
    CPU; a transformer has no use for it. The rules want the channels first, so that it does not
    pay where most parameters' gradients are asked for. Some models, such as those that flatten
    by ``view``, cannot take it: a dry run finds out, once.

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
    pays = _found_once(_keeps_channels_last, model, images, otherwise=False)
    return torch.channels_last if pays else torch.contiguous_format


def _found_once(
    find: Callable[[nn.Module, Tensor], Fact],
    model: nn.Module,
    images: Tensor,
    otherwise: Fact,
) -> Fact:
    """Return what dry runs of at most two images show, or something else where one fails."""
    known = state_of(model).found
    key = find, images.shape[1:], images.dtype
    if key not in known:
        check_eval_mode(model)
        try:
            known[key] = find(model, images[:2].contiguous())
        except Exception:  # if the images are at fault, the forward that follows will say so
            return otherwise
    return known[key]


def _image_bytes(model: nn.Module, images: Tensor) -> int:
    """Return the size of the largest intermediate result of one image."""
    of_one, of_two = (_observed(model, some)[1].largest for some in (images[:1], images))
    if len(of_one) == len(of_two):
        # What does not grow with the images, such as weights made in the forward, is no matter.
        of_two = [2 * (more - less) for less, more in zip(of_one, of_two, strict=True)]
    return max(images.nbytes, *of_two) // 2


def _keeps_channels_last(model: nn.Module, images: Tensor) -> bool:
    """Return whether a model keeps the channels last if it gets them so, with the same logits."""
    logits, _ = _observed(model, images)
    try:
        others, results = _observed(model, images.contiguous(memory_format=torch.channels_last))
    except Exception:  # such a model needs the channels first, whatever it says
        return False
    tolerance = 10 * math.sqrt(torch.finfo(logits.dtype).eps) * float(logits.abs().max())
    same = others.shape == logits.shape and float((logits - others).abs().max()) <= tolerance
    return same and results.channels_last >= LEAST_CHANNELS_LAST * sum(results.largest)


def _observed(model: nn.Module, images: Tensor) -> tuple[Tensor, "_Results"]:
    """Return a model's logits, and what the functions on the way made."""
    with dry_run(model, images) as copy, _Results() as results:
        return logits_of(model(copy), len(copy)), results


class _Results(TorchFunctionMode):
    """Weigh what each function that is called inside makes.

    Attributes:
        largest: Bytes of the largest result of each function.
        channels_last: Bytes of all of these that have the channels last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest: list[int] = []
        self.channels_last = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function and weigh its result."""
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        largest = max(tensors, key=lambda tensor: tensor.nbytes, default=None)
        self.largest.append(0 if largest is None else largest.nbytes)
        if largest is not None and largest.ndim == 4 and not largest.is_contiguous():
            last = largest.is_contiguous(memory_format=torch.channels_last)
            self.channels_last += largest.nbytes if last else 0
        return result
