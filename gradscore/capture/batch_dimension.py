"""The batch dimension of a tensor: the axis whose size goes with the number of samples, its rows.

It is found by comparison of two forwards over different numbers of samples. Where samples are sent
elsewhere by their values, what holds for one batch does not hold for the next.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gradscore.capture.calls import RecordedCall, Slot, TracedCall
from gradscore.graph import is_differentiable

_OUTSIDES = (torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass(frozen=True)
class BatchDimension:
    """Place of the samples in a tensor.

    Attributes:
        axis: The axis that holds them.
        rows: Rows of that axis that belong to one sample.
        adjacent: Whether a sample's rows stand side by side, or one row of every sample in turn.
    """

    axis: int
    rows: int = 1
    adjacent: bool = True

    def batch_first(self, x: Tensor) -> Tensor:
        """Return ``x`` as ``[samples * rows, ...]`` with a sample's rows side by side."""
        x = x.movedim(self.axis, 0) if self.axis else x
        if self.adjacent or self.rows == 1:
            return x
        return x.unflatten(0, (self.rows, -1)).transpose(0, 1).flatten(0, 1)

    def by_row(self, values: Tensor) -> Tensor:
        """Return one value a sample, ``[samples]``, for each row as they stand along the axis."""
        return values.repeat_interleave(self.rows) if self.adjacent else values.repeat(self.rows)


@dataclass(frozen=True)
class CallDimensions:
    """Batch dimensions of a recorded call: of its arguments that hold samples, and its outputs.

    Attributes:
        arguments: Batch dimensions of arguments, by slot.
        outputs: Batch dimensions of outputs.
        checked: Whether gradients showed them. Where they were all zero, a row may be of any
            sample.
    """

    arguments: dict[Slot, BatchDimension]
    outputs: tuple[BatchDimension, ...]
    checked: bool = True

    @cached_property
    def moved(self) -> bool:
        """Whether the samples of some argument or output are in another axis than the first."""
        return any(place.axis for place in (*self.arguments.values(), *self.outputs))

    def same_axes(self, other: "CallDimensions | None") -> bool:
        """Say whether another call has the samples in the same axes, in whatever order."""
        return other is not None and any(
            (order.arguments, order.outputs) == (self.arguments, self.outputs)
            for order in other.orders()
        )

    def orders(self) -> Iterator["CallDimensions"]:
        """Yield the dimensions with the same axes, for each order in which rows may stand."""
        yield self
        if any(place.rows > 1 for place in (*self.arguments.values(), *self.outputs)):
            yield CallDimensions(
                {slot: replace(place, adjacent=False) for slot, place in self.arguments.items()},
                tuple(replace(place, adjacent=False) for place in self.outputs),
            )


Dimensions = list[CallDimensions | None]
"""Those of each recorded call of a forward, ``None`` where they are not known."""


def single_sample_dimensions(call: RecordedCall) -> CallDimensions | None:
    """Return the dimensions of a call of a single sample, to which all in axis 0 belongs.

    Returns:
        ``None`` where there is data without an axis.
    """
    shapes = {slot: tensor.shape for slot, tensor in call.data.items()}
    if not all((*shapes.values(), *call.output_shapes)):
        return None
    return CallDimensions(
        {slot: BatchDimension(0, shape[0]) for slot, shape in shapes.items()},
        tuple(BatchDimension(0, shape[0]) for shape in call.output_shapes),
    )


def dimensions_by_shapes(
    call: RecordedCall, other: RecordedCall, batch: int, other_batch: int
) -> CallDimensions | None:
    """Return the dimensions of a call by comparison with the same call in another batch.

    Args:
        call: A call of a forward over ``batch`` samples.
        other: The same of a forward over ``other_batch`` samples.
        batch: Number of samples.
        other_batch: Another number of samples.

    Returns:
        The dimensions, a sample's rows taken to stand side by side, or ``None`` where the shapes
        do not show them.
    """
    owned = {slot for slot, _ in call.parameters}
    others = dict(other.arguments.tensors)
    arguments: dict[Slot, BatchDimension] = {}
    for slot, tensor in call.arguments.tensors:
        if slot not in others:
            return None
        twin = others[slot]
        if tensor.shape == twin.shape:
            counts = not (is_differentiable(tensor) or tensor.is_meta)
            if counts and not torch.equal(tensor, twin):
                return None
            continue
        place = _by_sizes(tensor.shape, twin.shape, batch, other_batch)
        if place is None or slot in owned:
            return None
        arguments[slot] = place
    shapes = zip(call.output_shapes, other.output_shapes, strict=True)
    outputs = [_by_sizes(shape, twin, batch, other_batch) for shape, twin in shapes]
    if None in outputs:
        return None
    return CallDimensions(arguments, tuple(outputs))


def _by_sizes(
    shape: Sequence[int], twin: Sequence[int], batch: int, other: int
) -> BatchDimension | None:
    """Return the axis whose size goes with the number of samples, if it is one."""
    if len(shape) != len(twin):
        return None
    axes = [axis for axis, sizes in enumerate(zip(shape, twin, strict=True)) if len({*sizes}) > 1]
    if len(axes) != 1:
        return None
    axis = axes[0]
    rows, rest = divmod(shape[axis], batch)
    return BatchDimension(axis, rows) if not rest and rows * other == twin[axis] else None


def mixes_samples(calls: Sequence[TracedCall], others: Sequence[TracedCall]) -> bool:
    """Say whether a tensor may have two axes that grow with the batch: samples against samples.

    Args:
        calls: What was called in a forward, in order.
        others: The same of a forward over another number of samples.
    """
    shapes = [shape for call in calls for shape, _ in call.results]
    twins = [shape for call in others for shape, _ in call.results]
    return len(shapes) != len(twins) or any(
        sum(a != b for a, b in zip(shape, twin, strict=False)) > 1
        for shape, twin in zip(shapes, twins, strict=True)
    )


def same_calls(calls: Sequence[RecordedCall], others: Sequence[RecordedCall]) -> bool:
    """Say whether two forwards took their parameters in the same calls."""
    return len(calls) == len(others) and all(
        call.arguments.function is other.arguments.function
        and [slot for slot, _ in call.parameters] == [slot for slot, _ in other.parameters]
        and len(call.output_shapes) == len(other.output_shapes)
        for call, other in zip(calls, others, strict=True)
    )


def broadcasts_over_batch(source: Tensor, result: Tensor, batch: int) -> bool:
    """Say whether a call may have broadcast a parameter over the batch, axis 0 of its result."""
    grown = source.ndim < result.ndim or source.shape[:1] == (1,)
    return batch > 1 and result.shape[:1] == (batch,) and grown


def reads_values(function: Callable[..., Any], result: Any) -> bool:
    """Say whether a call with data may have taken their values out of the tensors.

    Nobody sees what becomes of them there: a number may decide, an array may order the samples.

    Args:
        function: The function called.
        result: What it returned.
    """
    if result is None or isinstance(result, (Tensor, *_OUTSIDES)):
        return False
    if isinstance(result, (tuple, list)):
        return not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
    name = getattr(function, "__name__", "")
    return name != "__get__" and (name == "is_nonzero" or not name.startswith("is_"))
