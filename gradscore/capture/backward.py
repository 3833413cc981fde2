"""One backward of logits, with listeners to the gradients of some outputs on the way."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from gradscore.capture.use import Edge

Listener = Callable[[Sequence[Tensor | None]], None]
"""Takes the gradients that arrived at the node of an edge."""


def run_backward(
    logits: Tensor,
    ends: Sequence[Tensor | torch.autograd.graph.GradientEdge],
    listeners: Iterable[tuple[Edge, Listener]],
    cotangent: Tensor,
    *,
    retain: bool,
) -> None:
    """Run one backward; only what lies between the logits and the ends is run.

    Args:
        logits: Output of a model, shape ``[batch, classes]``, with its graph.
        ends: Where the graph ends; what arrives there is not used.
        listeners: Edges of recorded outputs, and what listens there.
        cotangent: Gradient of the summed losses with respect to the logits.
        retain: Whether the graph is kept for another backward.
    """
    handles = [edge.node.register_prehook(listener) for edge, listener in listeners]
    try:
        # A forward that detaches what it returns has nothing to run.
        if handles and ends and logits.requires_grad:
            torch.autograd.grad(logits, ends, cotangent, retain_graph=retain, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
