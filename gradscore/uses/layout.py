"""Where the samples are in a tensor, and the proof of it.

A forward in which every call surely left the batch in axis 0 proves itself. Otherwise the layout
is proved by a second forward over another number of samples: the axis of the batch is the one
whose size changes, and where it grew by more than the number of samples, as with windows folded
into the batch, the values tell whether a sample's rows stand side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscore.uses.arguments import Slot
from gradscore.uses.use import Use


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


@dataclass(frozen=True)
class UseLayout:
    """Layouts of the tensors of a use: its arguments that hold samples, and its outputs."""

    arguments: dict[Slot, Layout]
    outputs: tuple[Layout, ...]


def batch_first_layout(use: Use, batch: int) -> UseLayout | None:
    """Return the layout of a use whose data are all batch-first, or ``None`` if they are not.

    With a single sample, whatever is in axis 0 belongs to it.
    """
    owned = {slot for slot, _ in use.operands}
    arguments: dict[Slot, Layout] = {}
    for slot, tensor in use.arguments.tensors:
        if slot in owned or slot in use.constants:
            continue
        if tensor.ndim and tensor.shape[0] == batch:
            arguments[slot] = Layout(0)
        elif batch == 1 and tensor.ndim:
            arguments[slot] = Layout(0, tensor.shape[0])
        else:
            return None
    outputs = []
    for shape in use.output_shapes:
        if not shape or (batch > 1 and shape[0] != batch):
            return None
        outputs.append(Layout(0, shape[0] // batch))
    return UseLayout(arguments, tuple(outputs))


def proved_layout(use: Use, other: Use, batch: int, other_batch: int) -> UseLayout | None:
    """Return the layout of a use by comparison with the same use of another batch.

    Args:
        use: A use of a forward over ``batch`` samples.
        other: The same of a forward over ``other_batch`` samples, of which the first is the same.
        batch: Number of samples.
        other_batch: Another number of samples.

    Returns:
        The layouts, or ``None`` where the shapes and values do not tell.
    """
    owned = {slot for slot, _ in use.operands}
    others = dict(other.arguments.tensors)
    places: dict[Slot, tuple[int, int]] = {}
    told: set[bool] = set()
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
        places[slot] = place
        if tensor.is_meta and place[0] == 0:
            tensor, twin = use.glimpses.get(slot, tensor), other.glimpses.get(slot, twin)
        if place[1] > 1 and not tensor.is_meta and not twin.is_meta:
            told |= _adjacent(tensor, twin, place, batch, other_batch)
    if len(told) > 1 or (not told and any(rows > 1 for _, rows in places.values())):
        return None
    adjacent = False not in told
    arguments = {slot: Layout(*place, adjacent) for slot, place in places.items()}
    outputs = []
    for shape, twin_shape in zip(use.output_shapes, other.output_shapes, strict=True):
        place = _place(shape, twin_shape, batch, other_batch)
        if place is None:
            return None
        outputs.append(Layout(*place, adjacent))
    return UseLayout(arguments, tuple(outputs))


def _place(
    shape: Sequence[int], twin: Sequence[int], batch: int, other: int
) -> tuple[int, int] | None:
    """Return the axis that holds the samples and its rows a sample."""
    if len(shape) != len(twin):
        return None
    axes = [axis for axis, sizes in enumerate(zip(shape, twin, strict=True)) if len({*sizes}) > 1]
    if len(axes) != 1:
        return None
    axis = axes[0]
    rows, rest = divmod(shape[axis], batch)
    return (axis, rows) if not rest and rows * other == twin[axis] else None


def _adjacent(
    tensor: Tensor, twin: Tensor, place: tuple[int, int], batch: int, other: int
) -> set[bool]:
    """Return how the first sample's rows stand by their values, nothing if these do not tell."""
    axis, rows = place
    x, y = tensor.movedim(axis, 0), twin.movedim(axis, 0)
    small = 1e-3 * float(x.abs().max())
    orders = {True: (x[:rows], y[:rows]), False: (x[::batch], y[::other])}
    alike = {order for order, (a, b) in orders.items() if float((a - b).abs().max()) <= small}
    return alike if len(alike) == 1 else set()


def keeps_samples_apart(shapes: Sequence[torch.Size], others: Sequence[torch.Size]) -> bool:
    """Say whether no tensor has two axes that grow with the batch, as samples against samples do.

    Args:
        shapes: Shapes of the data made in a forward, in order.
        others: The same of a forward over another number of samples.
    """
    return len(shapes) == len(others) and all(
        sum(a != b for a, b in zip(shape, twin, strict=False)) < 2
        for shape, twin in zip(shapes, others, strict=True)
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
