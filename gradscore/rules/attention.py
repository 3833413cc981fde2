"""Masks and biases added to attention scores, such as relative position tables."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.rules.rule import Call, Rule
from gradscore.rules.scale_shift import sum_to_argument

SIGNATURES = {
    F.scaled_dot_product_attention: (
        *("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"),
    )
}


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


RULES = {(F.scaled_dot_product_attention, "attn_mask"): Rule("attention mask", mask_gradient)}
