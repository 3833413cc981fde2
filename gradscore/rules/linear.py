"""Linear layers, applied at one or at many positions of a sample."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.rules.linear_forms import linear_weight_norms
from gradscore.rules.rule import Call, Rule

SIGNATURES = {F.linear: ("input", "weight", "bias")}


def weight_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return ``sum over positions of g x^T``, shape ``[samples, out_features, in_features]``."""
    x, g = _positions(call.arguments["input"], call), _positions(grad, call)
    return torch.bmm(g.transpose(1, 2), x)


def weight_norms(call: Call, argument: str, grad: Tensor, orders: Sequence[float]) -> Tensor:
    """Return the norms of each sample's weight gradient, shape ``[samples, len(orders)]``."""
    x, g = _positions(call.arguments["input"], call), _positions(grad, call)
    return linear_weight_norms(x, g, orders)


def bias_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the sum of the output gradient over positions, shape ``[samples, out_features]``."""
    return _positions(grad, call).sum(dim=1)


def _positions(x: Tensor, call: Call) -> Tensor:
    """Bring a tensor to ``[samples, positions, features]``."""
    return x.reshape(call.samples, x.shape[:-1].numel() // call.samples, x.shape[-1])


def is_layer(arguments: Mapping[str, Any]) -> bool:
    """Say whether there is a weight ``[out, in]``, and a bias ``[out]`` if any, as in a layer."""
    weight, bias = arguments["weight"], arguments.get("bias")
    return weight.ndim == 2 and (bias is None or bias.shape == weight.shape[:1])


RULES = {
    (F.linear, "weight"): Rule(
        "linear", weight_gradient, weight_norms, trailing=True, serves=is_layer
    ),
    (F.linear, "bias"): Rule(
        "linear bias", bias_gradient, reads_data=False, trailing=True, serves=is_layer
    ),
}
