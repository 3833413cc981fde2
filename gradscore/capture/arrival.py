"""The gradients that arrived at one use, and the call as rules see it."""

import torch
from torch import Tensor

from gradscore.capture.layout import Layout, UseLayout
from gradscore.capture.use import Use
from gradscore.rules import Call


class Arrival:
    """What a backward brought to one use.

    Args:
        use: The recorded call.
        layout: Where its samples are.

    Attributes:
        use: The recorded call.
        layout: Where its samples are.
        grads: Gradients of the summed loss with respect to its outputs, as they arrived; ``None``
            where one has not, or where the logits do not depend on an output.
    """

    def __init__(self, use: Use, layout: UseLayout) -> None:
        self.use, self.layout = use, layout
        self.grads: list[Tensor | None] = [None] * len(use.edges)
        self._latest: tuple[slice, Call, Tensor] | None = None

    def call(self, part: slice) -> tuple[Call, Tensor]:
        """Return some samples of the call as a rule wants them, and its output gradient.

        The rules of several arguments get the same call, whose ``memo`` they share.
        """
        if self._latest is None or self._latest[0] != part:
            self._latest = (part, *self._cut(part))
        return self._latest[1:]

    def _cut(self, part: slice) -> tuple[Call, Tensor]:
        (grad,) = self.grads
        assert grad is not None, "contributions whose gradient did not arrive are left out"
        grad = _rows(grad, self.layout.outputs[0], part)
        arguments, values = self.use.arguments, {}
        for slot, tensor in arguments.tensors:
            if slot not in self.layout.arguments:
                continue
            rows = _rows(tensor, self.layout.arguments[slot], part)
            if rows.dtype != grad.dtype and rows.is_floating_point() and grad.is_floating_point():
                # Autocast hands over single precision and computes in half.
                dtype = torch.promote_types(rows.dtype, grad.dtype)
                rows, grad = rows.to(dtype), grad.to(dtype)
            if rows is not tensor:
                values[slot] = rows
        arguments = arguments.replaced(values) if values else arguments
        return Call(arguments.function, arguments.named(), part.stop - part.start), grad


def _rows(x: Tensor, layout: Layout, part: slice) -> Tensor:
    x = layout.batch_first(x)
    start, stop = part.start * layout.rows, part.stop * layout.rows
    return x if start == 0 and stop == len(x) else x[start:stop]
