"""Tables from which rows are looked up."""

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.rules.rule import Call, Rule

SIGNATURES = {
    F.embedding: (
        *("input", "weight", "padding_idx", "max_norm", "norm_type"),
        *("scale_grad_by_freq", "sparse"),
    ),
    torch.embedding: ("weight", "input", "padding_idx", "scale_grad_by_freq", "sparse"),
}


def gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the gradients of looked-up rows added where they came from, ``[samples, *table]``."""
    table = call.arguments[argument]
    rows, width = table.shape
    index = call.arguments["input"].reshape(call.samples, -1)
    grad = grad.reshape(call.samples, index.shape[1], width)
    if call.get("scale_grad_by_freq"):
        counts = grad.new_zeros(call.samples, rows).scatter_add_(
            1, index, grad.new_ones(index.shape)
        )
        grad = grad / counts.gather(1, index).unsqueeze(2)
    padding = call.get("padding_idx")
    if padding is not None and (padding >= 0 or call.function is F.embedding):
        grad = grad.masked_fill((index == padding % rows).unsqueeze(2), 0)
    first = torch.arange(call.samples, device=index.device).unsqueeze(1) * rows
    summed = grad.new_zeros(call.samples * rows, width)
    summed.index_add_(0, (index + first).flatten(), grad.flatten(0, 1))
    return summed.reshape(call.samples, rows, width)


RULES = {(function, "weight"): Rule("embedding", gradient) for function in SIGNATURES}
