"""Bare parameters that scale or shift data: position tables, layer scale, gates, PReLU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.rules.rule import Call, Rule

SCALES = (torch.mul, Tensor.mul, Tensor.mul_, torch.multiply, Tensor.multiply)
SHIFTS = (torch.add, Tensor.add, Tensor.add_)
DIFFERENCES = (torch.sub, Tensor.sub, Tensor.sub_)
SCALED_SHIFTS = (torch.addcmul, Tensor.addcmul, Tensor.addcmul_)
SIGNATURES: dict[Callable[..., Any], tuple[str, ...]] = {
    **dict.fromkeys((*SCALES, *SHIFTS, *DIFFERENCES), ("input", "other")),
    **dict.fromkeys(SCALED_SHIFTS, ("input", "tensor1", "tensor2")),
    F.prelu: ("input", "weight"),
    torch.prelu: ("input", "weight"),
}
_PARTNER = {"input": "other", "other": "input", "tensor1": "tensor2", "tensor2": "tensor1"}


def scale_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the gradient of a factor: ``g`` times the conjugate of the other factor, summed."""
    partner = call.arguments[_PARTNER[argument]]
    partner = partner.conj() if isinstance(partner, Tensor) else partner
    return sum_to_argument(grad * partner * call.get("value", 1), call, argument)


def shift_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the gradient of a summand: ``g``, summed; ``alpha`` scales the second."""
    alpha = call.get("alpha", 1) if argument == "other" else 1
    return sum_to_argument(grad if alpha == 1 else grad * alpha, call, argument)


def difference_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the gradient of one side of a difference: ``g`` or ``-g``, summed."""
    factor = -call.get("alpha", 1) if argument == "other" else 1
    return sum_to_argument(grad if factor == 1 else grad * factor, call, argument)


def prelu_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return ``sum over positions of g min(x, 0)`` for each slope, ``[samples, slopes]``."""
    product = grad * call.arguments["input"].clamp(max=0)
    slopes = call.arguments[argument]
    channels = slopes.numel()
    if channels == 1:
        return product.reshape(call.samples, -1).sum(dim=1).reshape(-1, *slopes.shape)
    product = product.reshape(*product.shape[:2], -1).sum(dim=2)
    rows = len(product) // call.samples
    return product.reshape(call.samples, rows, channels).sum(dim=1)


def sum_to_argument(product: Tensor, call: Call, argument: str) -> Tensor:
    """Sum ``[samples * k, ...]`` over the axes that broadcasting gave the argument.

    Args:
        product: A gradient shaped as the call's output, the batch in axis 0.
        call: The call.
        argument: The argument that was broadcast.

    Returns:
        Shape ``[samples, *argument.shape]``.
    """
    target = call.arguments[argument]
    shape = target.shape if isinstance(target, Tensor) else torch.Size()
    rows = len(product) // call.samples
    product = product.reshape(call.samples, rows, *product.shape[1:])
    sizes = [1] * (product.ndim - 1 - len(shape)) + list(shape)
    dims = tuple(
        axis for axis, size in enumerate(sizes, start=1) if size == 1 and product.shape[axis] != 1
    )
    return (product.sum(dim=dims) if dims else product).reshape(call.samples, *shape)


_SCALE = Rule("scale", scale_gradient)
_SHIFT = Rule("shift", shift_gradient, reads_data=False)
_DIFFERENCE = Rule("shift", difference_gradient, reads_data=False)
_PRELU = Rule("prelu", prelu_gradient)
RULES = {
    **{(function, name): _SCALE for function in SCALES for name in ("input", "other")},
    **{(function, name): _SHIFT for function in SHIFTS for name in ("input", "other")},
    **{(function, name): _DIFFERENCE for function in DIFFERENCES for name in ("input", "other")},
    **{(function, name): _SCALE for function in SCALED_SHIFTS for name in ("tensor1", "tensor2")},
    **{(function, "input"): _SHIFT for function in SCALED_SHIFTS},
    **{(function, "weight"): _PRELU for function in (F.prelu, torch.prelu)},
}
