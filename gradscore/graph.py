"""Autograd's graph: where it starts and ends, where gradients arrive, and where torch's are wrong.

Of an axis of size one the stride is arbitrary, and token networks give the batch axis of a single
image, or the one row of a sequence, one of its own. From it torch's batch norm on the CPU
concludes another layout of the memory than the one there is, and returns wrong gradients of its
input, weight and bias. :func:`work_around_strides` prevents that.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from gradscore.errors import memory_ended

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The other layout that torch's batch norm knows, by the number of axes."""

_PythonNode = torch._C._FunctionBase

Listener = Callable[[Sequence[Tensor | None]], None]
"""Takes the gradients that arrived at the node of an edge."""


def nodes_below(roots: Iterable[Node | None]) -> list[Node]:
    """Return the nodes of a graph, each once, however deep it is."""
    pending, found = [node for node in roots if node is not None], {}
    while pending:
        node = pending.pop()
        if node not in found:
            found[node] = None
            pending += [next_ for next_, _ in node.next_functions if next_ is not None]
    return list(found)


def leaves_of(nodes: Iterable[Node]) -> list[Tensor]:
    """Return the tensors at which a graph of some nodes ends, each once."""
    found = [getattr(node, "variable", None) for node in nodes if _may_be_leaf(type(node))]
    return [leaf for leaf in found if leaf is not None]


@lru_cache(1024)
def _may_be_leaf(kind: type) -> bool:
    """Say whether nodes of a kind may name a leaf: nodes written in Python have any attribute."""
    return hasattr(kind, "variable") or issubclass(kind, _PythonNode)


def leaves_below(roots: Iterable[Node | None]) -> list[Tensor]:
    """Return the tensors at which a graph ends, each once."""
    return leaves_of(nodes_below(roots))


def drawn_like(x: Tensor) -> Tensor:
    """Return normal numbers, always the same ones, with the shape and the type of a tensor."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(x)


class GraphStart(torch.autograd.Function):
    """An identity at which a graph starts.

    A recorded call gets aliases of its parameters that need no gradient, so that none is computed.
    Then the output of the first such call needs none either: autograd would keep no graph.
    This function ties the output to a tensor that does. In place, it costs no memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Tensor, in_place: bool) -> Tensor:
        """Return ``x`` as a part of the graph; ``start`` is what requires a gradient."""
        if in_place:
            ctx.mark_dirty(x)
            return x
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        """Stop here."""
        return None, None, None


def is_differentiable(x: Tensor) -> bool:
    """Say whether a tensor's type is one that has gradients."""
    return x.is_floating_point() or x.is_complex()


def is_view_of(output: Tensor, tensors: Iterable[Tensor]) -> bool:
    """Say whether an output is a view of one of some tensors, or of what that is a view of."""
    base = output._base
    return base is not None and any(base is x or base is x._base for x in tensors)


def copied_outputs(result: Any, outputs: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
    """Return what a call returned with copies of its outputs, and the copies."""
    # One output may be computed from another, as a cell's hidden state from its state.
    # The gradient that arrives at the other's node would hold what came through the first.
    # A copy has a node at which only the gradient of this output arrives.
    copies = {id(output): output.clone() for output in outputs}
    if isinstance(result, Tensor):
        result = copies[id(result)]
    else:
        result = type(result)([copies.get(id(entry), entry) for entry in result])
    return result, [copies[id(output)] for output in outputs]


@dataclass(frozen=True)
class Window:
    """How a view lies in the tensor behind it.

    Attributes:
        behind: Strides of that tensor.
        shape: Shape of the view.
        strides: Strides of the view.
        offset: Where it starts within that tensor.
    """

    behind: tuple[int, ...]
    shape: torch.Size
    strides: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, view: Tensor, base: Tensor) -> "Window":
        """Return how ``view`` lies in ``base``."""
        offset = view.storage_offset() - base.storage_offset()
        return cls(base.stride(), view.shape, view.stride(), offset)

    def of_gradient(self, grad: Tensor) -> Tensor:
        """Return the view's part of ``grad``, the gradient of the tensor behind it."""
        # The view's strides hold in a tensor that is laid out as the one behind it.
        # Autograd may lay a gradient out in another way, or expand it from one number.
        # Such a gradient is copied to the layout that the strides are for.
        if grad.stride() != self.behind:
            grad = grad.new_empty_strided(grad.shape, self.behind).copy_(grad)
        # A gradient may itself be a part of another, as that of an input of ``torch.cat``.
        return grad.as_strided(self.shape, self.strides, grad.storage_offset() + self.offset)


class Edge(NamedTuple):
    """Where the gradient of a recorded output arrives, whatever is done to the output in place.

    Attributes:
        node: The node of the graph whose incoming gradient it is.
        index: Which of the node's outputs.
        window: Where the output is a view, how it lies in the tensor behind it, since the gradient
            arrives at that tensor.
        owner: Keeps a node that is written in Python alive, which ``node`` itself does not. The
            model may let go of an output, as of the last state of a recurrent layer, and the
            node would go with it.
    """

    node: Node
    index: int
    window: Window | None = None
    owner: Node | None = None

    @classmethod
    def of(cls, output: Tensor) -> "Edge":
        """Return the edge of an output that was just computed."""
        base = output._base
        viewed = base is not None and base.requires_grad
        source, window = (base, Window.of(output, base)) if viewed else (output, None)
        node = source.grad_fn
        if node is not None and not isinstance(node, _PythonNode):
            return cls(node, source.output_nr, window)
        node, index, owner = get_gradient_edge(source)
        return cls(node, index, window, owner)

    def gradient(self, arrived: Sequence[Tensor | None]) -> Tensor | None:
        """Return the output's gradient from those that arrived at the node."""
        grad = arrived[self.index]
        return grad if grad is None or self.window is None else self.window.of_gradient(grad)


def run_backward(
    logits: Tensor,
    ends: Sequence[Tensor | GradientEdge],
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


def pull_back(
    derived: Tensor, sources: Mapping[str, GradientEdge], gradients: Tensor
) -> dict[str, Tensor]:
    """Return per-sample gradients of parameters from those of a tensor derived from them.

    Args:
        derived: The tensor, with the graph of how it was computed.
        sources: Edges of the parameters that it was derived from, by name.
        gradients: Per-sample gradients with respect to it, shape ``[samples, *derived.shape]``.

    Returns:
        Per-sample gradients ``[samples, *parameter.shape]`` of each parameter, by name.
    """
    edges = list(sources.values())
    try:
        pulled = torch.autograd.grad(
            derived, edges, gradients, retain_graph=True, is_grads_batched=True
        )
    except RuntimeError as error:
        if memory_ended(error):
            raise
        # Some backward functions cannot be vmapped.
        rows = [torch.autograd.grad(derived, edges, row, retain_graph=True) for row in gradients]
        pulled = tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
    return dict(zip(sources, pulled, strict=True))


def work_around_strides(nodes: Iterable[Node]) -> None:
    """Let each batch norm concerned get its gradient laid out as its input, with plain strides.

    Args:
        nodes: The graph of a model's output.
    """
    for node in nodes:
        if not type(node).__name__.startswith("NativeBatchNormBackward"):
            continue
        # The gradient must have the layout that torch takes it to have: the input's.
        # Torch judges that by the strides, which lie where an axis has size one.
        # A copy in a plain layout has strides that say where the numbers are.
        x = node._saved_input
        if x.numel() == 0:
            # Torch divides by the number of rows, which ends the process: none has a gradient.
            node.register_prehook(lambda grads: (None,) * len(grads))
        elif 1 in x.shape:
            node.register_prehook(_laying_out(_layout_of(x)))


def _layout_of(x: Tensor) -> torch.memory_format:
    last = CHANNELS_LAST.get(x.ndim)
    is_last = last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last)
    return last if is_last else torch.contiguous_format


def _laying_out(
    layout: torch.memory_format,
) -> Callable[[Sequence[Tensor | None]], tuple[Tensor | None, ...]]:
    """Return a hook that holds no node: a graph that holds itself is freed late."""
    return lambda grads: tuple(g if g is None else g.clone(memory_format=layout) for g in grads)
