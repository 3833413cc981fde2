"""Bare parameters that are broadcast against data: expanded, scaled with, added, or masks.

So are class tokens, position tables, layer scale, gates, the slopes of PReLU, and the relative
position tables that are added to attention scores.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.rules.rule import Call, Rule, sum_by_channel

Signatures = dict[Callable[..., Any], tuple[str, ...]]

EXPANSIONS: Signatures = {
    **dict.fromkeys((Tensor.expand, Tensor.repeat, Tensor.tile), ("input", "*sizes")),
    torch.tile: ("input", "dims"),
    Tensor.expand_as: ("input", "other"),
    **dict.fromkeys((Tensor.broadcast_to, torch.broadcast_to), ("input", "size")),
}
SCALES: Signatures = dict.fromkeys(
    (torch.mul, Tensor.mul, Tensor.mul_, torch.multiply, Tensor.multiply), ("input", "other")
)
SHIFTS: Signatures = dict.fromkeys((torch.add, Tensor.add, Tensor.add_), ("input", "other"))
DIFFERENCES: Signatures = dict.fromkeys((torch.sub, Tensor.sub, Tensor.sub_), ("input", "other"))
SCALED_SHIFTS: Signatures = dict.fromkeys(
    (torch.addcmul, Tensor.addcmul, Tensor.addcmul_), ("input", "tensor1", "tensor2")
)
PRELUS: Signatures = dict.fromkeys((F.prelu, torch.prelu), ("input", "weight"))
ATTENTIONS: Signatures = {
    F.scaled_dot_product_attention: (
        *("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
    )
}
_PARTNER = {"input": "other", "other": "input", "tensor1": "tensor2", "tensor2": "tensor1"}


def expansion_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the output gradient summed over copies, shape ``[samples, *parameter.shape]``."""
    shape = call.arguments[argument].shape
    sizes = [1] * (grad.ndim - len(shape)) + list(shape)
    copies = [out // size for out, size in zip(grad.shape[1:], sizes[1:], strict=True)]
    split = [part for pair in zip(copies, sizes[1:], strict=True) for part in pair]
    summed = tuple(range(1, 2 * len(copies), 2))
    grad = grad.reshape(call.samples, *split)
    return (grad.sum(dim=summed) if summed else grad).reshape(call.samples, *shape)


def scale_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the gradient of a factor: ``g`` times the conjugate of the other factor, summed."""
    partner = call.arguments[_PARTNER[argument]]
    partner = partner.conj() if isinstance(partner, Tensor) else partner
    return sum_to_argument(grad * partner * call.get("value", 1), call, argument)


def shift_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the gradient of a summand, or of one side of a difference: ``g``, summed.

    ``alpha`` scales the second, whose sign a difference turns.
    """
    factor = call.get("alpha", 1) if argument == "other" else 1
    if argument == "other" and call.function in DIFFERENCES:
        factor = -factor
    return sum_to_argument(grad if factor == 1 else grad * factor, call, argument)


def prelu_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return ``sum over positions of g min(x, 0)`` for each slope, ``[samples, slopes]``."""
    product = grad * call.arguments["input"].clamp(max=0)
    slopes = call.arguments[argument]
    if slopes.numel() == 1:
        return product.reshape(call.samples, -1).sum(dim=1).reshape(-1, *slopes.shape)
    return sum_by_channel(product, call.samples)


def mask_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return ``P (dP - sum(dP P))`` with ``dP = g v^T``, summed to the shape of the mask.

    ``P`` is the softmax of the scores, shape ``[samples * k, heads, queries, keys]``.
    """
    query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
    if call.get("enable_gqa"):
        shared = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(shared, dim=-3) for x in (key, value))
    scale = call.get("scale")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1) * scale + call.arguments[argument]
    weights = torch.softmax(scores, dim=-1)
    change = grad @ value.transpose(-2, -1)
    change = weights * (change - (change * weights).sum(dim=-1, keepdim=True))
    return sum_to_argument(change, call, argument)


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


EXPANSION = Rule("expansion", expansion_gradient, reads_data=False)
SCALE = Rule("scale", scale_gradient)
SHIFT = Rule("shift", shift_gradient, reads_data=False)
PRELU = Rule("prelu", prelu_gradient)
MASK = Rule("attention mask", mask_gradient)
