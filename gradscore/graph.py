"""Autograd's graph: its nodes, and the places where torch's own gradient is wrong.

Of an axis of size one the stride is arbitrary, and token networks give the batch axis of a lone
image, or the one row of a sequence, one of its own. From it torch's batch norm on the CPU
concludes another layout of the memory than the one there is, and returns wrong gradients of its
input, weight and bias.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The other layout that torch's batch norm knows, by the number of axes."""


def nodes_below(roots: Sequence[Node | None]) -> Iterator[Node]:
    """Yield the nodes of a graph, each once, however deep it is."""
    pending, seen = [node for node in roots if node is not None], set()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            yield node
            pending.extend(next_ for next_, _ in node.next_functions if next_ is not None)


def straighten_batch_norms(logits: Tensor) -> None:
    """Let each batch norm concerned get its gradient laid out as its input, with plain strides.

    Args:
        logits: Output of a model, with the graph of how it was made.
    """
    for node in nodes_below([logits.grad_fn]):
        if not node.name().startswith("NativeBatchNormBackward"):
            continue
        if node._saved_input.numel() == 0:
            # Torch divides by the number of rows, which ends the process: none has a gradient.
            node.register_prehook(lambda grads: (None,) * len(grads))
        elif 1 in node._saved_input.shape:
            node.register_prehook(_laying_out(_layout_of(node._saved_input)))


def _layout_of(x: Tensor) -> torch.memory_format:
    last = CHANNELS_LAST.get(x.ndim)
    is_last = last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last)
    return last if is_last else torch.contiguous_format


def _laying_out(
    layout: torch.memory_format,
) -> Callable[[Sequence[Tensor | None]], tuple[Tensor | None, ...]]:
    """Return a hook that holds no node: a graph that holds itself is freed late."""
    return lambda grads: tuple(g if g is None else g.clone(memory_format=layout) for g in grads)
