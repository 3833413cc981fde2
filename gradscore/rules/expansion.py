"""Parameters spread over the batch: class tokens, position tables, expanded or repeated."""

import torch
from torch import Tensor

from gradscore.rules.rule import Call, Rule

SIGNATURES = {
    Tensor.expand: ("input", "*sizes"),
    Tensor.repeat: ("input", "*sizes"),
    Tensor.tile: ("input", "*sizes"),
    torch.tile: ("input", "dims"),
    Tensor.expand_as: ("input", "other"),
    Tensor.broadcast_to: ("input", "size"),
    torch.broadcast_to: ("input", "size"),
}


def gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the output gradient summed over copies, shape ``[samples, *parameter.shape]``."""
    shape = call.arguments[argument].shape
    sizes = [1] * (grad.ndim - len(shape)) + list(shape)
    copies = [out // size for out, size in zip(grad.shape[1:], sizes[1:], strict=True)]
    split = [part for pair in zip(copies, sizes[1:], strict=True) for part in pair]
    summed = tuple(range(1, 2 * len(copies), 2))
    grad = grad.reshape(call.samples, *split)
    return (grad.sum(dim=summed) if summed else grad).reshape(call.samples, *shape)


RULES = {
    (function, "input"): Rule("expansion", gradient, reads_data=False) for function in SIGNATURES
}
