"""The proof that a last layer's gradient is the closed form's, in the graph of autograd.

Values do not tell it. ``x + (x - x.detach())`` is ``x`` with twice the gradient, a clamp shows for
large logits alone, and a hook changes a gradient unseen. So two things are asked of the graph from
the logits to the weight: only functions that multiply, move or cast lie on it, which act alike on
every image; and the gradient of one sample is the outer product of its cotangent and its features.
"""

import torch
from torch import Tensor, nn

from gradscore.capture import requiring_grad
from gradscore.graph import nodes_below
from gradscore.network import force_eager, observe, preserve_state, without_caches
from gradscore.outputs import logits_of

MULTIPLY = {"Addmm", "Mm", "Bmm", "Linear", "MkldnnLinear", "Convolution", "Add"}
MOVE = {
    *{"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Expand"},
    *{"T", "Transpose", "Permute", "Clone", "Alias", "AsStrided", "ToCopy", "AccumulateGrad"},
}
"""Functions that may lie between a weight and the logits, as autograd names their nodes."""

MAGNITUDES = (-4, 0, 4)
"""Exponents of two of the cotangents: a hook may clip gradients, or round small ones."""


def gradient_fault(model: nn.Module, layer: str, images: Tensor) -> str:
    """Return why the gradient of a layer's weight is not the outer product, or nothing.

    Args:
        model: Classifier in evaluation mode; left as it is.
        layer: Name of the layer whose weight is in question, called once in a forward.
        images: Its input, shape ``[batch, ...]``; two samples are enough.

    Raises:
        ModelError: If the weight cannot require a gradient, or there is a hook on it.
    """
    module = model.get_submodule(layer)
    weight = module.weight
    seen: list[Tensor] = []

    def keep(name: str, args: tuple, output: Tensor) -> None:
        # In the type that was multiplied: autocast rounds the features.
        seen.append(args[0].detach().to(output.dtype).flatten(1))

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        requiring_grad(model, {f"{layer}.weight".lstrip("."): weight}),
        without_caches(model, images),
        preserve_state(model),
        force_eager(),
        observe({layer: module}, keep),
    ):
        logits = logits_of(model(images.detach().clone()), len(images))
        if not logits.requires_grad:
            return "the logits have no graph, as under torch.no_grad()"
        for node in nodes_below([logits.grad_fn]):
            if _kind(node.name()) not in MULTIPLY | MOVE:
                return f"{node.name()} lies between its weight and the logits"
        return _difference(logits, seen[-1], weight)


def _kind(name: str) -> str:
    """Return the function behind a node: ``Addmm`` for ``AddmmBackward0``."""
    name = name.rpartition("::")[2]
    return name.rstrip("0123456789").removesuffix("Backward")


def _difference(logits: Tensor, x: Tensor, weight: Tensor) -> str:
    """Return how the weight's gradients differ from outer products, or nothing."""
    # One sample and powers of two: each entry is one feature, which rounds nothing but in TF32.
    exact = logits.device.type == "cpu" and logits.dtype != torch.float16
    tolerance = 1e-5 if exact else 2e-3
    draws = torch.Generator().manual_seed(0)
    for sample in range(len(x)):
        exponents = torch.tensor([MAGNITUDES], device="cpu").T.expand(-1, logits.shape[1])
        signs = torch.randint(0, 2, exponents.shape, generator=draws, device="cpu") * 2 - 1
        for row in (signs * 2.0**exponents).to(logits):
            cotangent = torch.zeros_like(logits)
            cotangent[sample] = row
            (got,) = torch.autograd.grad(logits, weight, cotangent, retain_graph=True)
            expected = torch.outer(row, x[sample]).to(got.dtype)
            off = (got.flatten(1) - expected).abs_().sum(dtype=torch.float64)
            if not off <= tolerance * expected.abs_().sum(dtype=torch.float64):
                return "the gradient of its weight is not that of W x + b"
    return ""
