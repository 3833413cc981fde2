"""Gradients with respect to tensors made of parameters, pulled back to the parameters.

How such a tensor was made is known to autograd, since the recorder let its calls run as they are.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from gradscore.errors import memory_ended
from gradscore.graph import nodes_below


def leaves_below(roots: Sequence[Node | None]) -> list[Tensor]:
    """Return the tensors at which a graph ends, each once."""
    found = (getattr(node, "variable", None) for node in nodes_below(roots))
    return [leaf for leaf in found if leaf is not None]


def pull_back(
    made: Tensor, sources: Mapping[str, GradientEdge], gradients: Tensor
) -> dict[str, Tensor]:
    """Return per-sample gradients of parameters from those of a tensor made of them.

    Args:
        made: The tensor, with the graph of how it was made.
        sources: Edges of the parameters that it was made of, by name.
        gradients: Per-sample gradients with respect to it, shape ``[samples, *made.shape]``.

    Returns:
        Per-sample gradients ``[samples, *parameter.shape]`` of each parameter, by name.
    """
    edges = list(sources.values())
    try:
        pulled = torch.autograd.grad(
            made, edges, gradients, retain_graph=True, is_grads_batched=True
        )
    except RuntimeError as error:
        if memory_ended(error):
            raise
        # Some backward functions cannot be vmapped.
        rows = [torch.autograd.grad(made, edges, row, retain_graph=True) for row in gradients]
        pulled = tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
    return dict(zip(sources, pulled, strict=True))
