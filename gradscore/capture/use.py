"""One use of parameters: a recorded call in which parameters, or what they make, meet data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from gradscore.capture.arguments import Arguments, Slot
from gradscore.rules import Rule


class Root(torch.autograd.Function):
    """An identity at which a graph begins, in place, so that it costs no memory.

    The output of the first use of a parameter needs a gradient though none of its inputs does.
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


def without_memory(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape without memory."""
    return torch.empty_like(tensor, device="meta")


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
        if grad.stride() != self.behind:
            grad = grad.new_empty_strided(grad.shape, self.behind).copy_(grad)
        # A gradient may itself be a part of another, as that of an input of ``torch.cat``.
        return grad.as_strided(self.shape, self.strides, grad.storage_offset() + self.offset)


@dataclass(frozen=True)
class Edge:
    """Where the gradient of a recorded output arrives, whatever is done to the output in place.

    Attributes:
        node: The node of the graph whose incoming gradient it is.
        index: Which of the node's outputs.
        shape: Shape of the recorded output.
        window: Where the output is a view, how it lies in the tensor behind it, since the gradient
            arrives at that tensor.
        owner: Keeps a node that is written in Python alive, which ``node`` itself does not. The
            model may let go of an output, as of the last state of a recurrent layer, and the
            node would go with it.
    """

    node: Node
    index: int
    shape: torch.Size
    window: Window | None = None
    owner: Node | None = None

    @classmethod
    def of(cls, output: Tensor) -> "Edge":
        """Return the edge of an output that was just computed."""
        base = output._base
        viewed = base is not None and base.requires_grad
        node, index, owner = get_gradient_edge(base if viewed else output)
        window = Window.of(output, base) if viewed else None
        return cls(node, index, output.shape, window, owner)

    def gradient(self, arrived: Sequence[Tensor | None]) -> Tensor | None:
        """Return the output's gradient from those that arrived at the node."""
        grad = arrived[self.index]
        return grad if grad is None or self.window is None else self.window.of_gradient(grad)


class Made(NamedTuple):
    """A call that took data: what was called, and what it made.

    Attributes:
        function: The function.
        results: Shape and type of each tensor that it returned.
        fixed: Axes, sizes and other whole numbers that it was called with.
    """

    function: Callable[..., Any]
    results: tuple[tuple[torch.Size, torch.dtype], ...]
    fixed: tuple[Any, ...]


@dataclass
class Use:
    """A recorded call and the parameters, or tensors made of parameters, that it took.

    Attributes:
        arguments: What was passed, parameters replaced by detached aliases.
        operands: Slot and tensor of every parameter, or tensor made of parameters.
        rules: What serves each operand, ``None`` for the generic rule.
        edges: Where the gradients of its outputs arrive.
        output_shapes: Shapes of its outputs that have a gradient.
        constants: Slots of tensors that hold no samples, such as buffers.
        versions: Version counters of the data, which shall not change before they are read.
        autocast: The type that autocast computed in, ``None`` where it was off.
        expansion: Ordinal of the call among those that may spread a parameter over the batch.
    """

    arguments: Arguments
    operands: tuple[tuple[Slot, Tensor], ...]
    rules: Mapping[Slot, Rule | None]
    edges: tuple[Edge, ...]
    output_shapes: tuple[torch.Size, ...]
    constants: frozenset[Slot]
    versions: Mapping[Slot, int]
    autocast: torch.dtype | None = None
    expansion: int | None = None

    @property
    def name(self) -> str:
        """The function's name, for messages."""
        return getattr(self.arguments.function, "__name__", str(self.arguments.function))

    def let_go(self) -> None:
        """Let go of the graph, and of the values of data that a layout is not told by."""
        floating = {
            slot: without_memory(x)
            for slot, x in self.arguments.tensors
            if x.is_floating_point() or x.is_complex()
        }
        self.arguments, self.edges = self.arguments.replaced(floating), ()

    def release(self) -> None:
        """Let go of the data, once nothing more will be asked of them."""
        self.arguments = Arguments(self.arguments.function, (), {})
        self.edges = ()
