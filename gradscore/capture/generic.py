"""The rule that needs no rule: vmap over samples of the vjp of one recorded call."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from gradscore.capture.arguments import Slot, tensors_in
from gradscore.capture.functions import is_in_place
from gradscore.capture.layout import UseLayout
from gradscore.capture.use import Use
from gradscore.errors import memory_ended


class Unserved(Exception):
    """A recorded call cannot be made anew for one sample."""


def call_gradients(
    use: Use, layout: UseLayout, slots: Sequence[Slot], grads: Sequence[Tensor | None], part: slice
) -> list[Tensor]:
    """Return per-sample gradients of one call with respect to some of its operands.

    Args:
        use: The recorded call.
        layout: Where its samples are.
        slots: The operands asked for.
        grads: Gradients of the summed loss with respect to its outputs, as they arrived;
            ``None`` where nothing depends on an output.
        part: The samples asked for.

    Returns:
        One tensor ``[samples, *operand.shape]`` for each slot.

    Raises:
        Unserved: If the call cannot be made for one sample alone.
    """
    tensors = {
        # Data that were let go have no influence on the gradient: any values will do.
        slot: torch.zeros_like(x, device=use.operands[0][1].device) if x.is_meta else x
        for slot, x in use.arguments.tensors
    }
    operands = [tensors[slot] for slot in slots]
    data_slots = list(layout.arguments)
    data = [layout.arguments[slot] for slot in data_slots]
    sliced = [
        _by_sample(tensors[slot], at, part) for slot, at in zip(data_slots, data, strict=True)
    ]
    arrived = [index for index, grad in enumerate(grads) if grad is not None]
    sliced_grads = [_by_sample(grads[i], layout.outputs[i], part) for i in arrived]

    def values_of(rows: list[Tensor]) -> dict[Slot, Tensor]:
        return {
            slot: row.movedim(0, at.axis)
            for slot, row, at in zip(data_slots, rows, data, strict=True)
        }

    def cotangents_of(row_grads: list[Tensor]) -> list[Tensor]:
        return [
            g.movedim(0, layout.outputs[i].axis) for g, i in zip(row_grads, arrived, strict=True)
        ]

    def outputs_of(values: dict[Slot, Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
        replaced = values | dict(zip(slots, parameters, strict=True))
        if is_in_place(use.arguments.function):
            target = use.arguments.first
            replaced[target] = replaced.get(target, tensors[target]).clone()
        with _as_recorded(use):
            outputs = _differentiable(use.arguments.replaced(tensors | replaced).call())
        return [outputs[i] for i in arrived]

    def transformed(rows: list[Tensor], row_grads: list[Tensor]) -> list[Tensor]:
        values = values_of(rows)
        _, pull = vjp(lambda *parameters: outputs_of(values, parameters), *operands)
        return list(pull(cotangents_of(row_grads)))

    def plain(rows: list[Tensor], row_grads: list[Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            parameters = [operand.detach().requires_grad_() for operand in operands]
            outputs = outputs_of(values_of(rows), parameters)
        pairs = zip(outputs, cotangents_of(row_grads), strict=True)
        reached = [(output, g) for output, g in pairs if output.requires_grad]
        if not reached:
            return [torch.zeros_like(parameter) for parameter in parameters]
        outputs, cotangents = zip(*reached, strict=True)
        found = torch.autograd.grad(outputs, parameters, cotangents, materialize_grads=True)
        return [g.to_dense() if g.is_sparse else g for g in found]

    samples = part.stop - part.start
    if samples > 1 or not sliced:
        try:
            found = vmap(transformed)(sliced, sliced_grads)
            if not any(gradient.is_sparse for gradient in found):
                return found
        except RuntimeError as error:
            # Some functions cannot be vmapped: recurrent kernels, calls that read a value.
            if memory_ended(error):
                raise
    rows = [([x[i] for x in sliced], [g[i] for g in sliced_grads]) for i in range(samples)]
    try:
        parts = [plain(*row) for row in rows]
    except (RuntimeError, ValueError, IndexError) as error:
        if memory_ended(error):
            raise
        raise Unserved(f"{use.name} does not run for one sample") from error
    return [torch.stack(gradients) for gradients in zip(*parts, strict=True)]


def _as_recorded(use: Use) -> AbstractContextManager:
    """Return the autocast that the call ran in."""
    device = use.operands[0][1].device.type
    return torch.autocast(
        device, use.autocast, enabled=use.autocast is not None, cache_enabled=False
    )


def _by_sample(x: Tensor, layout: Any, part: slice) -> Tensor:
    """Return the samples of ``part`` as ``[samples, rows, ...]``."""
    return layout.batch_first(x).unflatten(0, (-1, layout.rows))[part]


def _differentiable(result: Any) -> list[Tensor]:
    return [t for t in tensors_in((result,), {}) if t.is_floating_point() or t.is_complex()]
