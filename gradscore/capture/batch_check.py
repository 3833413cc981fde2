"""The check of batch dimensions, by a second forward and by gradients.

A second forward takes a few of the samples in another order: the batch axis is the one whose size
changes. How the rows stand within that axis, gradients show. They are linear in the cotangent:
where each sample's cotangent is multiplied by a factor of its own, each row of a gradient is
multiplied by the factor of the sample that it belongs to. This shows rows that stand in another
order than thought, or belong to several samples.

What is known of a few samples is known of batches of any size. Where nothing arrived at a call,
the gradients of the whole batch are asked.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradscore.capture.batch_dimension import (
    CallDimensions,
    Dimensions,
    dimensions_by_shapes,
    mixes_samples,
    same_calls,
    single_sample_dimensions,
)
from gradscore.capture.recorder import Recorder
from gradscore.errors import memory_ended
from gradscore.graph import Edge, Listener, drawn_like, leaves_below, run_backward
from gradscore.network import state_of, unobserved

MOST_KNOWN = 64
"""For how many kinds of forward the dimensions are kept, for a state of a model."""

FACTORS = 8
"""Base of the numbers of samples; one backward a digit distinguishes samples by it."""

Run = Callable[[Tensor, Sequence[bool]], Recorder]


def checked_forward(
    model: nn.Module, images: Tensor, run: Run, expansions: Sequence[bool] = ()
) -> tuple[Recorder, Dimensions]:
    """Run a model, and find where the samples are in each recorded call.

    Args:
        model: The model, whose samples do not depend on each other.
        images: Its input, shape ``[batch, ...]``.
        run: Runs and records a forward over images, with what is known of its expansions.
        expansions: Which of the calls that may broadcast a parameter over the batch do.

    Returns:
        The recorded forward, and the dimensions of each call, ``None`` where they are not known.
    """
    first = run(images, expansions)
    if first.differentiates:
        return first, [None] * len(first.calls)
    if len(images) == 1:
        return first, [single_sample_dimensions(call) for call in first.calls]
    # One check serves a whole run, for what was called and for the state that the model is in.
    found = state_of(model).found
    known: OrderedDict[Any, Dimensions] = found.setdefault(checked_forward, OrderedDict())
    key = _key(first)
    if key in known:
        known.move_to_end(key)
        first.forget = lambda: known.pop(key, None)
        return first, known[key]
    if first.data_dependent:
        dimensions = _by_shapes(first, _run_few(images, first, run))
        return first, _for_itself(check_by_gradients(first, dimensions, retain=True))
    compared: dict[Any, FewSamples] = found.setdefault(FewSamples, {})
    kind = _kind(first, images)
    dimensions = compared[kind].dimensions_of(first) if kind in compared else None
    if dimensions is None:
        first, few = _compared(first, images, run)
        if few is None or _key(first) != key:
            return first, [None] * len(first.calls)
        compared[kind], dimensions = few, few.dimensions
    if not all(call is None or call.checked for call in dimensions):
        dimensions = _checked_on_all(first, dimensions)
    known[key] = dimensions
    while len(known) > MOST_KNOWN:
        known.popitem(last=False)
    return first, _for_itself(dimensions)


@dataclass(frozen=True)
class FewSamples:
    """A forward over a few samples, and the dimensions that its gradients showed.

    By comparison with it, those of a batch of any other size are known.
    """

    recorder: Recorder
    dimensions: Dimensions

    def dimensions_of(self, first: Recorder) -> Dimensions | None:
        """Return the dimensions of a forward, or ``None`` if the comparison does not show them."""
        if len(first.logits) == len(self.recorder.logits):
            return None
        pairs = list(zip(_by_shapes(first, self.recorder), self.dimensions, strict=True))
        agree = all(old is None or (new and new.same_axes(old)) for new, old in pairs)
        return self.dimensions if agree else None


def _key(recorder: Recorder) -> Any:
    """Return what dimensions depend on: functions and shapes."""
    calls = tuple(
        (
            call.arguments.function,
            call.output_shapes,
            tuple(tensor.shape for _, tensor in call.arguments.tensors),
        )
        for call in recorder.calls
    )
    return len(recorder.logits), calls, tuple(recorder.trace)


def _kind(recorder: Recorder, images: Tensor) -> Any:
    calls = [(c.arguments.function, tuple(s for s, _ in c.parameters)) for c in recorder.calls]
    return images.shape[1:], images.dtype, tuple(calls)


def _compared(first: Recorder, images: Tensor, run: Run) -> tuple[Recorder, FewSamples | None]:
    """Compare a forward with one over a few of its images, and run it again.

    Returns:
        The forward anew, and what the few samples showed, if the model takes so few.
    """
    # The graphs of two forwards would take twice the memory.
    # The first keeps its shapes alone while the second runs, and runs again after it.
    # So one graph is held at a time, for one forward more on the first batch of a kind.
    first.free_graph()
    second = _run_few(images, first, run)
    if second is None:
        return run(images, first.expansions), None
    dimensions = _by_shapes(first, second)
    if any(dimensions):
        dimensions = check_by_gradients(second, dimensions, retain=False)
    second.free_graph()
    return run(images, first.expansions), FewSamples(second, dimensions)


def _run_few(images: Tensor, first: Recorder, run: Run) -> Recorder | None:
    """Run a few of the images; ``None`` where the model does not take this number of them."""
    try:
        with unobserved():
            return run(images[_picked(len(images))], first.expansions)
    except Exception as error:  # a model that takes this number of images alone is not compared
        if memory_ended(error):
            raise
        return None


def _picked(batch: int) -> list[int]:
    """Return numbers of a few samples, not as many as there are, in an order of no symmetry."""
    return [2, 1] if batch == 3 else [batch - 1, 0, batch // 2]


def _by_shapes(first: Recorder, second: Recorder | None) -> Dimensions:
    """Return the dimensions that the comparison of two forwards shows."""
    if (
        second is None
        or mixes_samples(first.trace, second.trace)
        or not same_calls(first.calls, second.calls)
    ):
        return [None] * len(first.calls)
    batch, few = len(first.logits), len(second.logits)
    return [
        dimensions_by_shapes(call, twin, batch, few)
        for call, twin in zip(first.calls, second.calls, strict=True)
    ]


def _for_itself(dimensions: Dimensions) -> Dimensions:
    """Return the dimensions for the batch that they were asked of: rows of zeros are no matter."""
    return [call and replace(call, checked=True) for call in dimensions]


def _checked_on_all(first: Recorder, dimensions: Dimensions) -> Dimensions:
    """Return dimensions, those that a few samples did not show as the whole batch shows them."""
    asked = [call if call and not call.checked else None for call in dimensions]
    more = check_by_gradients(first, asked, retain=True)
    return [new if ask else old for ask, new, old in zip(asked, more, dimensions, strict=True)]


def check_by_gradients(recorder: Recorder, dimensions: Dimensions, *, retain: bool) -> Dimensions:
    """Return the dimensions that gradients agree with, with the order of rows that they show.

    Args:
        recorder: A recorded forward.
        dimensions: Dimensions of its calls by shape; ``None`` where they are not known.
        retain: Whether the graph is kept for another backward.

    Returns:
        The dimensions, ``None`` where there are none that the gradients agree with. Those of which
        they showed nothing, for they were zero, are marked as not checked.
    """
    samples = len(recorder.logits)
    # Relative error within which gradients of two kernels are the same.
    tolerance = min(0.05, 10 * math.sqrt(torch.finfo(recorder.coarsest).eps))
    digits = max(1, math.ceil(math.log(samples, FACTORS) - 1e-9))
    numbers = torch.arange(samples, device=recorder.logits.device)
    factors = [2.0 ** (numbers // FACTORS**digit % FACTORS) for digit in range(digits)]
    cotangent = drawn_like(recorder.logits)
    plain = _row_sums(recorder, dimensions, cotangent, retain=True)
    scaled = []
    for digit, factor in enumerate(factors, start=1):
        by_sample = cotangent * factor.to(cotangent)[:, None]
        keep = retain or digit < digits
        scaled.append((factor, _row_sums(recorder, dimensions, by_sample, retain=keep)))
    found: Dimensions = []
    for number, call in enumerate(dimensions):
        here = [(factor, sums[number]) for factor, sums in scaled]
        found.append(call and _agreeing(call, plain[number], here, tolerance))
    return found


def _agreeing(
    call: CallDimensions,
    plain: Mapping[int, Tensor],
    scaled: Sequence[tuple[Tensor, Mapping[int, Tensor]]],
    tolerance: float,
) -> CallDimensions | None:
    """Return a call's dimensions in the order of rows that its gradients show, if there is one."""
    orders = [
        order
        for order in call.orders()
        if all(
            _agree(rows, sums[output], order.outputs[output].by_row(factor), tolerance)
            for factor, sums in scaled
            for output, rows in plain.items()
        )
    ]
    if not orders:
        return None
    samples = len(scaled[0][0])
    reached = 0
    for output, rows in plain.items():
        numbers = torch.arange(samples, device=rows.device)
        owners = orders[0].outputs[output].by_row(numbers)
        reached = max(reached, len(owners[rows > 0].unique()))
    # Rows of two samples that stand where they should show that nothing is turned around.
    return replace(orders[0], checked=len(orders) == 1 and reached >= min(2, samples))


def _agree(plain: Tensor, scaled: Tensor, factors: Tensor, tolerance: float) -> bool:
    expected = plain * factors.to(plain)
    bound = tolerance * (expected + tolerance * expected.max())
    return bool(((scaled - expected).abs() <= bound).all())


def _row_sums(
    recorder: Recorder, dimensions: Dimensions, cotangent: Tensor, *, retain: bool
) -> list[dict[int, Tensor]]:
    """Run one backward, and sum the magnitudes in each row of the gradients of recorded outputs.

    Returns:
        For each call the sums ``[rows]``, by number of the output, where a gradient arrived.
    """
    sums: list[dict[int, Tensor]] = [{} for _ in dimensions]

    def listener(number: int, output: int, edge: Edge, axis: int) -> Listener:
        def listen(arrived: Sequence[Tensor | None]) -> None:
            grad = edge.gradient(arrived)
            if grad is not None:
                rows = grad.detach().movedim(axis, 0).abs()
                rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
                others = tuple(range(1, rows.ndim))
                sums[number][output] = rows.sum(dim=others) if others else rows

        return listen

    listeners = [
        (edge, listener(number, output, edge, call.outputs[output].axis))
        for number, call in enumerate(dimensions)
        if call is not None
        for output, edge in enumerate(recorder.calls[number].edges)
    ]
    ends = leaves_below([recorder.logits.grad_fn])
    run_backward(recorder.logits, ends, listeners, cotangent, retain=retain)
    return sums
