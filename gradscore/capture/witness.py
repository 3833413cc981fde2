"""What gradients tell of the samples that their rows belong to.

They are linear in the cotangent: where each sample's cotangent is multiplied by a factor of its
own, each row of a gradient is multiplied by the factor of the sample that it belongs to. This
shows rows that stand in another order than thought, or belong to several samples.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradscore.capture.backward import Listener, run_backward
from gradscore.capture.derivation import leaves_below
from gradscore.capture.layout import UseLayout
from gradscore.capture.recorder import Recorder
from gradscore.capture.use import Edge

FACTORS = 8
"""Samples are told apart by the digits of their numbers to this base, by one backward a digit."""

Sums = dict[tuple[int, int], Tensor]
"""Sum of magnitudes of each row of a gradient, by number of the use and position of the output."""


def confirmed(
    recorder: Recorder,
    layouts: Sequence[UseLayout | None],
    tolerance: float,
    *,
    retain: bool,
) -> list[UseLayout | None]:
    """Return the layouts that gradients confirm, with the order of rows that they tell.

    Args:
        recorder: A recorded forward.
        layouts: Layouts of its uses by shape; ``None`` where it could not be told.
        tolerance: Relative error within which two gradients are the same.
        retain: Whether the graph is kept for another backward.

    Returns:
        The layouts, ``None`` where there is none that the gradients agree with. One of which
        they told nothing, for they were zero, is marked as not told.
    """
    samples = len(recorder.logits)
    digits = max(1, math.ceil(math.log(samples, FACTORS) - 1e-9))
    numbers = torch.arange(samples, device=recorder.logits.device)
    factors = [2.0 ** (numbers // FACTORS**digit % FACTORS) for digit in range(digits)]
    drawn = torch.randn(
        recorder.logits.shape, generator=torch.Generator().manual_seed(0), device="cpu"
    )
    cotangent = drawn.to(recorder.logits)
    plain = _row_sums(recorder, layouts, cotangent, retain=True)
    scaled = []
    for digit, factor in enumerate(factors, start=1):
        by_sample = cotangent * factor.to(cotangent)[:, None]
        keep = retain or digit < digits
        scaled.append(_row_sums(recorder, layouts, by_sample, retain=keep))
    found: list[UseLayout | None] = []
    for number, layout in enumerate(layouts):
        here = [key for key in plain if key[0] == number]
        fitting = [
            order
            for order in (layout.orders() if layout else ())
            if all(
                _agree(plain[key], sums[key], order.outputs[key[1]].spread(factor), tolerance)
                for sums, factor in zip(scaled, factors, strict=True)
                for key in here
            )
        ]
        reached = max(
            (
                len(order.outputs[key[1]].spread(numbers)[plain[key] > 0].unique())
                for order in fitting[:1]
                for key in here
            ),
            default=0,
        )
        # Rows of two samples that stand where they should show that nothing is turned around.
        told = len(fitting) == 1 and reached >= min(2, samples)
        found.append(replace(fitting[0], told=told) if fitting else None)
    return found


def _agree(plain: Tensor, scaled: Tensor, factors: Tensor, tolerance: float) -> bool:
    expected = plain * factors.to(plain)
    bound = tolerance * (expected + tolerance * expected.max())
    return bool(((scaled - expected).abs() <= bound).all())


def _row_sums(
    recorder: Recorder,
    layouts: Sequence[UseLayout | None],
    cotangent: Tensor,
    *,
    retain: bool,
) -> Sums:
    """Run one backward, and return the row sums of the gradients of recorded outputs."""
    sums: Sums = {}

    def listener(key: tuple[int, int], edge: Edge, axis: int) -> Listener:
        def listen(arrived: Sequence[Tensor | None]) -> None:
            grad = edge.gradient(arrived)
            if grad is not None:
                rows = grad.detach().movedim(axis, 0).abs()
                rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
                sums[key] = rows.sum(dim=tuple(range(1, rows.ndim))) if rows.ndim > 1 else rows

        return listen

    listeners = [
        (edge, listener((number, position), edge, layout.outputs[position].axis))
        for number, layout in enumerate(layouts)
        if layout is not None
        for position, edge in enumerate(recorder.uses[number].edges)
    ]
    ends = leaves_below([recorder.logits.grad_fn])
    run_backward(recorder.logits, ends, listeners, cotangent, retain=retain)
    return sums
