"""Where the samples are in a tensor: the axis whose size goes with their number, and its rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradscore.capture.arguments import Slot
from gradscore.capture.use import Made, Use


@dataclass(frozen=True)
class Layout:
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

    def spread(self, values: Tensor) -> Tensor:
        """Return one value a sample, ``[samples]``, for each row as they stand along the axis."""
        return values.repeat_interleave(self.rows) if self.adjacent else values.repeat(self.rows)


@dataclass(frozen=True)
class UseLayout:
    """Layouts of the tensors of a use: its arguments that hold samples, and its outputs.

    Attributes:
        arguments: Layouts of arguments, by slot.
        outputs: Layouts of outputs.
        told: Whether gradients told them; where they were all zero, the rows may be anybody's.
    """

    arguments: dict[Slot, Layout]
    outputs: tuple[Layout, ...]
    told: bool = True

    def same_axes(self, other: "UseLayout | None") -> bool:
        """Say whether another layout has the samples in the same axes, in whatever order."""
        return other is not None and any(
            (order.arguments, order.outputs) == (self.arguments, self.outputs)
            for order in other.orders()
        )

    def orders(self) -> Iterator["UseLayout"]:
        """Yield the layouts with the same axes, for each order in which rows may stand."""
        yield self
        if any(place.rows > 1 for place in (*self.arguments.values(), *self.outputs)):
            yield UseLayout(
                {slot: replace(place, adjacent=False) for slot, place in self.arguments.items()},
                tuple(replace(place, adjacent=False) for place in self.outputs),
            )


def lone_layout(use: Use) -> UseLayout | None:
    """Return the layout of a use of a single sample, to which whatever is in axis 0 belongs.

    Returns:
        ``None`` where there is data without an axis.
    """
    owned = {slot for slot, _ in use.operands}
    data = {
        slot: tensor.shape
        for slot, tensor in use.arguments.tensors
        if slot not in owned and slot not in use.constants
    }
    if not all((*data.values(), *use.output_shapes)):
        return None
    return UseLayout(
        {slot: Layout(0, shape[0]) for slot, shape in data.items()},
        tuple(Layout(0, shape[0]) for shape in use.output_shapes),
    )


def layout_by_shapes(use: Use, other: Use, batch: int, other_batch: int) -> UseLayout | None:
    """Return the layout of a use by comparison with the same use of another batch.

    Args:
        use: A use of a forward over ``batch`` samples.
        other: The same of a forward over ``other_batch`` samples.
        batch: Number of samples.
        other_batch: Another number of samples.

    Returns:
        The layouts, a sample's rows taken to stand side by side, or ``None`` where the shapes do
        not tell them.
    """
    owned = {slot for slot, _ in use.operands}
    others = dict(other.arguments.tensors)
    arguments: dict[Slot, Layout] = {}
    for slot, tensor in use.arguments.tensors:
        if slot not in others:
            return None
        twin = others[slot]
        if tensor.shape == twin.shape:
            counts = not (tensor.is_floating_point() or tensor.is_complex() or tensor.is_meta)
            if counts and not torch.equal(tensor, twin):
                return None
            continue
        place = _place(tensor.shape, twin.shape, batch, other_batch)
        if place is None or slot in owned:
            return None
        arguments[slot] = place
    outputs = []
    for shape, twin_shape in zip(use.output_shapes, other.output_shapes, strict=True):
        place = _place(shape, twin_shape, batch, other_batch)
        if place is None:
            return None
        outputs.append(place)
    return UseLayout(arguments, tuple(outputs))


def _place(shape: Sequence[int], twin: Sequence[int], batch: int, other: int) -> Layout | None:
    """Return the place of the samples in the axis whose size goes with their number."""
    if len(shape) != len(twin):
        return None
    axes = [axis for axis, sizes in enumerate(zip(shape, twin, strict=True)) if len({*sizes}) > 1]
    if len(axes) != 1:
        return None
    axis = axes[0]
    rows, rest = divmod(shape[axis], batch)
    return Layout(axis, rows) if not rest and rows * other == twin[axis] else None


def keeps_samples_apart(calls: Sequence[Made], others: Sequence[Made]) -> bool:
    """Say whether no tensor has two axes that grow with the batch, as samples against samples do.

    Args:
        calls: What was called in a forward, in order.
        others: The same of a forward over another number of samples.
    """
    shapes = [shape for call in calls for shape, _ in call.results]
    twins = [shape for call in others for shape, _ in call.results]
    return len(shapes) == len(twins) and all(
        sum(a != b for a, b in zip(shape, twin, strict=False)) < 2
        for shape, twin in zip(shapes, twins, strict=True)
    )


def same_uses(uses: Sequence[Use], others: Sequence[Use]) -> bool:
    """Say whether two forwards used their parameters in the same calls."""
    return len(uses) == len(others) and all(
        use.arguments.function is other.arguments.function
        and [slot for slot, _ in use.operands] == [slot for slot, _ in other.operands]
        and len(use.output_shapes) == len(other.output_shapes)
        for use, other in zip(uses, others, strict=True)
    )


def signature_of(uses: Sequence[Use]) -> tuple[object, ...]:
    """Return what a proof of layouts depends on: functions and shapes."""
    return tuple(
        (
            use.arguments.function,
            use.output_shapes,
            tuple(tensor.shape for _, tensor in use.arguments.tensors),
        )
        for use in uses
    )
