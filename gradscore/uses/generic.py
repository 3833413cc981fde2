"""The rule that needs no rule: vmap over samples of the vjp of one recorded call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from gradscore.uses.arguments import Slot, tensors_in
from gradscore.uses.layout import UseLayout
from gradscore.uses.use import Use


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
    """
    tensors = {
        # Data that were let go have no influence on the gradient: any values will do.
        slot: torch.zeros_like(x, device=use.operands[0][1].device) if x.is_meta else x
        for slot, x in use.arguments.tensors()
    }
    operands = [tensors[slot] for slot in slots]
    data_slots = list(layout.arguments)
    data = [layout.arguments[slot] for slot in data_slots]
    sliced = [
        _by_sample(tensors[slot], at, part) for slot, at in zip(data_slots, data, strict=True)
    ]
    arrived = [index for index, grad in enumerate(grads) if grad is not None]
    sliced_grads = [_by_sample(grads[i], layout.outputs[i], part) for i in arrived]

    def one_sample(rows: list[Tensor], row_grads: list[Tensor]) -> list[Tensor]:
        values = {
            slot: row.movedim(0, at.axis)
            for slot, row, at in zip(data_slots, rows, data, strict=True)
        }

        def outputs_of(*parameters: Tensor) -> list[Tensor]:
            replaced = values | dict(zip(slots, parameters, strict=True))
            outputs = _differentiable(use.arguments.replaced(tensors | replaced).call())
            return [outputs[i] for i in arrived]

        _, pull = vjp(outputs_of, *operands)
        return list(
            pull(
                [
                    g.movedim(0, layout.outputs[i].axis)
                    for g, i in zip(row_grads, arrived, strict=True)
                ]
            )
        )

    samples = part.stop - part.start
    if samples > 1 or not sliced:
        try:
            return vmap(one_sample)(sliced, sliced_grads)
        except RuntimeError:
            # Some functions cannot be vmapped: recurrent kernels, calls that read a value.
            pass
    parts = [
        one_sample([x[i] for x in sliced], [g[i] for g in sliced_grads]) for i in range(samples)
    ]
    return [torch.stack(gradients) for gradients in zip(*parts, strict=True)]


def _by_sample(x: Tensor, layout: Any, part: slice) -> Tensor:
    """Return the samples of ``part`` as ``[samples, rows, ...]``."""
    return layout.batch_first(x).unflatten(0, (-1, layout.rows))[part]


def _differentiable(result: Any) -> list[Tensor]:
    return [t for t in tensors_in((result,), {}) if t.is_floating_point() or t.is_complex()]
