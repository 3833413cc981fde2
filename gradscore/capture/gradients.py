"""Per-sample gradients of a parameter argument of one recorded call.

A rule gives them, or, where there is none, vmap over samples of the vjp of that call. Those of a
derived parameter are pulled back to the parameters that it was computed from.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.func import vjp, vmap

from gradscore.capture.batch_dimension import BatchDimension, CallDimensions
from gradscore.capture.calls import RecordedCall, Slot, tensors_in
from gradscore.capture.functions import is_in_place
from gradscore.errors import memory_ended
from gradscore.graph import is_differentiable, pull_back
from gradscore.rules import Call, Rule
from gradscore.rules.normalization import Standardisation
from gradscore.rules.rule import reduce_tiles


class Unserved(Exception):
    """A recorded call cannot be made anew for one sample."""


def rule_for(call: RecordedCall, dimensions: CallDimensions, slot: Slot) -> Rule | None:
    """Return the rule that serves a parameter argument, or ``None`` if the generic one must."""
    rule = call.rules[slot]
    if rule is None or len(call.output_shapes) != 1:
        return None
    return rule if rule.trailing or not dimensions.moved else None


class GradientSink:
    """Where the output gradients of one recorded call arrive.

    Args:
        call: The recorded call.
        dimensions: Where its samples are.

    Attributes:
        call: The recorded call.
        dimensions: Where its samples are.
        grads: Gradients of the summed loss with respect to its outputs, as they arrived; ``None``
            where one has not, or where the logits do not depend on an output.
    """

    def __init__(self, call: RecordedCall, dimensions: CallDimensions) -> None:
        self.call, self.dimensions = call, dimensions
        self.grads: list[Tensor | None] = [None] * len(call.edges)
        self._latest: tuple[slice, Call, Tensor] | None = None

    @property
    def has_rows(self) -> bool:
        """Whether there is a gradient: of no rows, as of an unused expert, there is none."""
        return any(grad is not None and grad.numel() for grad in self.grads)

    @property
    def needs_check(self) -> bool:
        """Whether gradients arrived where so far all were zero, of rows that may be of anybody."""
        if self.dimensions.checked:
            return False
        return any(grad is not None and bool(grad.any()) for grad in self.grads)

    def rule(self, slot: Slot) -> Rule | None:
        """Return the rule that serves a parameter argument, or ``None``."""
        return rule_for(self.call, self.dimensions, slot)

    def cut(self, part: slice) -> tuple[Call, Tensor]:
        """Return some samples of the call as a rule wants them, and its output gradient.

        The rules of several arguments get the same call, whose ``memo`` they share.
        """
        if self._latest is None or self._latest[0] != part:
            self._latest = (part, *self._cut(part))
        return self._latest[1:]

    def _cut(self, part: slice) -> tuple[Call, Tensor]:
        (grad,) = self.grads
        assert grad is not None, "arguments whose gradient did not arrive are left out"
        grad = _rows(grad, self.dimensions.outputs[0], part)
        arguments, values = self.call.arguments, {}
        for slot, tensor in arguments.tensors:
            if slot not in self.dimensions.arguments:
                continue
            rows = _rows(tensor, self.dimensions.arguments[slot], part)
            if rows.dtype != grad.dtype and rows.is_floating_point() and grad.is_floating_point():
                # Autocast hands over single precision and computes in half.
                dtype = torch.promote_types(rows.dtype, grad.dtype)
                rows, grad = rows.to(dtype), grad.to(dtype)
            if rows is not tensor:
                values[slot] = rows
        arguments = arguments.replaced(values) if values else arguments
        return Call(arguments.function, arguments.named(), part.stop - part.start), grad


class ParameterArgument(NamedTuple):
    """One parameter argument of one recorded call.

    Attributes:
        number: Which recorded call of the forward.
        slot: Which of its arguments.
        tensor: The parameter, or the tensor derived from parameters.
        sources: The selected parameters it is, or is derived from.
        direct: Whether it is the parameter itself.
    """

    number: int
    slot: Slot
    tensor: Tensor
    sources: tuple[str, ...]
    direct: bool

    def short_norms(
        self, sink: GradientSink, samples: int, orders: Sequence[float]
    ) -> Tensor | None:
        """Return norms ``[samples, len(orders)]`` without whole per-sample gradients.

        Returns:
            ``None`` where there is no such form.
        """
        rule = sink.rule(self.slot)
        standardised = None if self.direct else Standardisation.of(self.tensor)
        if rule is None or (rule.norms is None if self.direct else standardised is None):
            return None
        name = sink.call.arguments.name(self.slot)
        call, grad = sink.cut(slice(0, samples))
        if standardised is None:
            return rule.norms(call, name, grad, orders)
        if rule.tiles is None:
            return None
        return reduce_tiles(rule.tiles(call, name, grad), orders, standardised.pull_back)

    def by_rule(self, sink: GradientSink, part: slice) -> Tensor | None:
        """Return per-sample gradients of the argument, or ``None`` where there is no rule."""
        rule = sink.rule(self.slot)
        if rule is None:
            return None
        call, grad = sink.cut(part)
        return rule.gradient(call, sink.call.arguments.name(self.slot), grad)

    def gradients(
        self, sink: GradientSink, edges: Mapping[str, GradientEdge], part: slice
    ) -> dict[str, Tensor]:
        """Return per-sample gradients of the parameters that it is, or is derived from, by name.

        Args:
            sink: The gradients that arrived at the call.
            edges: Graph edges of the parameters, by name.
            part: The samples asked for.

        Raises:
            Unserved: If there is no rule, and the call cannot be made for one sample alone.
        """
        gradient = self.by_rule(sink, part)
        if gradient is None:
            gradient = generic_gradients(sink, self.slot, part)
        if self.direct:
            return {self.sources[0]: gradient}
        edges = {name: edges[name] for name in self.sources}
        return pull_back(self.tensor, edges, gradient.to(self.tensor.dtype))


def _rows(x: Tensor, place: BatchDimension, part: slice) -> Tensor:
    x = place.batch_first(x)
    start, stop = part.start * place.rows, part.stop * place.rows
    return x if start == 0 and stop == x.shape[0] else x[start:stop]


def generic_gradients(sink: GradientSink, slot: Slot, part: slice) -> Tensor:
    """Return per-sample gradients of a call by vmap of vjp, or one sample after the other.

    Args:
        sink: The call, and the gradients that arrived at its outputs.
        slot: The parameter argument.
        part: The samples asked for.

    Returns:
        Shape ``[samples, *argument.shape]``.

    Raises:
        Unserved: If the call cannot be made for one sample alone.
    """
    single = _SingleSampleCall(sink, slot)
    rows, grads = single.batched(sink.grads, part)
    samples = part.stop - part.start
    if samples > 1 or not rows:
        try:
            found = vmap(single.by_vjp)(rows, grads)
            if not found.is_sparse:
                return found
        except RuntimeError as error:
            # Some functions cannot be vmapped: recurrent kernels, calls that read a value.
            if memory_ended(error):
                raise
    try:
        return torch.stack(
            [
                single.by_autograd([x[i] for x in rows], [g[i] for g in grads])
                for i in range(samples)
            ]
        )
    except (RuntimeError, ValueError, IndexError) as error:
        if memory_ended(error):
            raise
        raise Unserved(f"{sink.call.name} does not run for one sample") from error


class _SingleSampleCall:
    """A recorded call made anew for the rows of one sample."""

    def __init__(self, sink: GradientSink, slot: Slot) -> None:
        self._call, self._slot = sink.call, slot
        self._device = sink.call.parameters[0][1].device
        # Data that were freed have no influence on the gradient: any values will do.
        self._tensors = {
            slot: torch.zeros_like(x, device=self._device) if x.is_meta else x
            for slot, x in sink.call.arguments.tensors
        }
        self._places = sink.dimensions.arguments
        self._arrived = {
            index: place
            for index, place in enumerate(sink.dimensions.outputs)
            if sink.grads[index] is not None
        }

    def batched(
        self, grads: Sequence[Tensor | None], part: slice
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return data and output gradients of some samples, ``[samples, rows, ...]`` each."""
        rows = [_by_sample(self._tensors[slot], at, part) for slot, at in self._places.items()]
        return rows, [_by_sample(grads[index], at, part) for index, at in self._arrived.items()]

    def by_vjp(self, rows: list[Tensor], grads: list[Tensor]) -> Tensor:
        """Return the gradient of one sample, by functions that can be vmapped."""
        parameter = self._tensors[self._slot]
        _, pull = vjp(lambda parameter: self._outputs(rows, parameter), parameter)
        return pull(self._cotangents(grads))[0]

    def by_autograd(self, rows: list[Tensor], grads: list[Tensor]) -> Tensor:
        """Return the gradient of one sample, by plain autograd."""
        with torch.enable_grad():
            parameter = self._tensors[self._slot].detach().requires_grad_()
            outputs = self._outputs(rows, parameter)
        pairs = zip(outputs, self._cotangents(grads), strict=True)
        reached = [(output, grad) for output, grad in pairs if output.requires_grad]
        if not reached:
            return torch.zeros_like(parameter)
        outputs, cotangents = zip(*reached, strict=True)
        (found,) = torch.autograd.grad(outputs, parameter, cotangents, materialize_grads=True)
        return found.to_dense() if found.is_sparse else found

    def _cotangents(self, grads: list[Tensor]) -> list[Tensor]:
        places = self._arrived.values()
        return [grad.movedim(0, at.axis) for grad, at in zip(grads, places, strict=True)]

    def _outputs(self, rows: list[Tensor], parameter: Tensor) -> list[Tensor]:
        values = {
            slot: row.movedim(0, at.axis)
            for (slot, at), row in zip(self._places.items(), rows, strict=True)
        }
        values[self._slot] = parameter
        if is_in_place(self._call.arguments.function):
            # It may be called several times, and each time needs what it overwrites.
            target = self._call.arguments.first
            values[target] = values.get(target, self._tensors[target]).clone()
        with self._autocast():
            result = self._call.arguments.replaced(self._tensors | values).call()
        outputs = [t for t in tensors_in((result,), {}) if is_differentiable(t)]
        return [outputs[index] for index in self._arrived]

    def _autocast(self) -> AbstractContextManager:
        """Return the autocast that the call ran in."""
        dtype = self._call.autocast
        return torch.autocast(
            self._device.type, dtype, enabled=dtype is not None, cache_enabled=False
        )


def _by_sample(x: Any, place: BatchDimension, part: slice) -> Tensor:
    """Return the samples of ``part`` as ``[samples, rows, ...]``."""
    return place.batch_first(x).unflatten(0, (-1, place.rows))[part]
