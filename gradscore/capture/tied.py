"""Tied parameters: those whose gradients come together, and the norms of these gradients.

Most parameters are taken once and stand alone. One that several calls take adds their gradients
before the norm; those joined in one tensor, such as query and value bias, are pulled back
together. Each gradient is reduced to norms and freed as soon as a backward has brought what its
parameters wait for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscore.capture.gradients import (
    GradientSink,
    ParameterArgument,
    Unserved,
    rule_for,
)
from gradscore.capture.recorder import Forward
from gradscore.graph import leaves_below, run_backward
from gradscore.norms import vector_norm
from gradscore.rules.rule import spans

CHUNK_BYTES = {"cpu": 32 * 1024**2, "cuda": 1024**3}
"""Size of the per-sample gradients held at once where a rule has no cheaper form."""


@dataclass(eq=False)
class TiedParameters:
    """Parameters that share parameter arguments, and all of these.

    Attributes:
        names: Names of the parameters.
        shapes: Their shapes, by name.
        arguments: Where calls take them, or what is derived from them.
        forward: The recorded forward.
        by_reference: Whether they are left to the reference.
    """

    names: tuple[str, ...]
    shapes: Mapping[str, torch.Size]
    arguments: tuple[ParameterArgument, ...]
    forward: Forward
    by_reference: bool

    @property
    def numbers(self) -> set[int]:
        """Numbers of the recorded calls that take them."""
        return {argument.number for argument in self.arguments}

    def rules(self) -> dict[str, str]:
        """Return what serves each parameter, by name."""
        if self.by_reference:
            return dict.fromkeys(self.names, "reference")
        return {
            name: " + ".join(
                dict.fromkeys(self._rule_name(a) for a in self.arguments if name in a.sources)
            )
            for name in self.names
        }

    def _rule_name(self, argument: ParameterArgument) -> str:
        number = argument.number
        call, dimensions = self.forward.calls[number], self.forward.dimensions[number]
        assert dimensions is not None, "calls without dimensions are served by the reference"
        rule = rule_for(call, dimensions, argument.slot)
        name = rule.name if rule else f"generic ({call.name})"
        return name if argument.direct else f"{name}, pulled back"

    def norms(
        self, sinks: Mapping[int, GradientSink], orders: Sequence[float]
    ) -> dict[str, Tensor]:
        """Return norms ``[batch, len(orders)]`` of each parameter.

        Where the generic rule cannot serve a call, nothing is returned, and the parameters are
        left to the reference.

        Args:
            sinks: What the backward brought to each recorded call, by its number.
            orders: Orders of the norm.

        Raises:
            ModelError: If the model changed the input of a call in place after it was read.
        """
        arrived = [a for a in self.arguments if sinks[a.number].has_rows]
        if not arrived:
            return {}
        for argument in arrived:
            sinks[argument.number].call.check_unchanged()
        if any(sinks[argument.number].needs_check for argument in arrived):
            self.forward.forget()
            self.by_reference = True
            return {}
        if len(self.arguments) == len(self.names) == 1:
            sink, samples = sinks[arrived[0].number], len(self.forward.logits)
            short = arrived[0].short_norms(sink, samples, orders)
            if short is not None:
                return {self.names[0]: short}
        try:
            return self._by_chunks(arrived, sinks, orders)
        except Unserved:
            self.by_reference = True
            return {}

    def _by_chunks(
        self,
        arrived: Sequence[ParameterArgument],
        sinks: Mapping[int, GradientSink],
        orders: Sequence[float],
    ) -> dict[str, Tensor]:
        """Return norms of whole per-sample gradients, those of a few samples at a time."""
        logits = self.forward.logits
        sizes = [shape.numel() for shape in self.shapes.values()]
        sizes += [argument.tensor.numel() for argument in arrived if not argument.direct]
        budget = CHUNK_BYTES.get(logits.device.type, CHUNK_BYTES["cpu"])
        step = max(1, budget // max(1, sum(sizes) * logits.element_size()))
        norms: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for part in spans(len(logits), step):
            totals: dict[str, Tensor] = {}
            for argument in arrived:
                sink = sinks[argument.number]
                gradients = argument.gradients(sink, self.forward.edges, part)
                for name, gradient in gradients.items():
                    totals[name] = totals[name] + gradient if name in totals else gradient
            for name, gradient in totals.items():
                rows = gradient.reshape(len(gradient), -1)
                rows = rows.abs() if rows.is_complex() else rows
                norms[name].append(torch.stack([vector_norm(rows, p) for p in orders], dim=1))
        return {name: torch.cat(parts) for name, parts in norms.items() if parts}


def tie_parameters(forward: Forward, selected: Mapping[str, Tensor]) -> list[TiedParameters]:
    """Group the selected parameters of a forward by the parameter arguments that they share."""
    names = {id(parameter): name for name, parameter in selected.items()}
    groups: dict[str, tuple[set[str], list[ParameterArgument]]] = {
        name: ({name}, []) for name in (selected if forward.differentiates else forward.uncovered)
    }
    for number, call in enumerate(forward.calls):
        for slot, tensor in call.parameters:
            sources = _sources(tensor, names)
            if not sources:
                continue
            direct = id(tensor) in names
            joined: tuple[set[str], list[ParameterArgument]] = (
                set(sources),
                [ParameterArgument(number, slot, tensor, sources, direct)],
            )
            for members, arguments in {
                id(groups[n]): groups[n] for n in sources if n in groups
            }.values():
                joined[0].update(members)
                joined[1][:0] = arguments
            groups.update(dict.fromkeys(joined[0], joined))
    distinct = {id(group): group for group in groups.values()}.values()
    return [_tied(forward, selected, *group) for group in distinct]


def _sources(tensor: Tensor, names: Mapping[int, str]) -> tuple[str, ...]:
    if id(tensor) in names:
        return (names[id(tensor)],)
    leaves = leaves_below([tensor.grad_fn])
    return tuple(names[id(leaf)] for leaf in leaves if id(leaf) in names)


def _tied(
    forward: Forward,
    selected: Mapping[str, Tensor],
    members: set[str],
    arguments: list[ParameterArgument],
) -> TiedParameters:
    alone = len(members) == 1
    names = tuple(members if alone else (name for name in selected if name in members))
    unknown = any(forward.dimensions[argument.number] is None for argument in arguments)
    return TiedParameters(
        names=names,
        shapes={name: selected[name].shape for name in names},
        arguments=tuple(arguments),
        forward=forward,
        by_reference=unknown
        or forward.differentiates
        or not forward.uncovered.isdisjoint(members)
        # A hook may change the gradient of a parameter.
        or any(selected[name]._backward_hooks for name in members),
    )


def backward_to_norms(
    forward: Forward,
    groups: Sequence[TiedParameters],
    cotangent: Tensor,
    orders: Sequence[float],
    *,
    last: bool,
) -> dict[str, Tensor]:
    """Run one backward, and reduce each gradient to norms as soon as it can be.

    Args:
        forward: The recorded forward.
        groups: The parameters asked for; those left to the reference get no norms.
        cotangent: Gradient of the summed losses with respect to the logits.
        orders: Orders of the norm.
        last: Whether no other backward follows: what the forward left is freed on the way.

    Returns:
        Norms ``[batch, len(orders)]`` by name, of those parameters that a gradient arrived at.

    Raises:
        ModelError: If the model changed a recorded input in place.
    """
    served = [group for group in groups if not group.by_reference]
    run = _Backward(forward, served, orders, last)
    # What uncovered parameters get on the way is not used.
    uncovered = [forward.edges[n] for n in forward.uncovered if n in forward.edges]
    ends = [forward.start, *uncovered]
    listeners = [
        (edge, run.listener(number, position))
        for number in run.by_call
        for position, edge in enumerate(forward.calls[number].edges)
    ]
    run_backward(forward.logits, ends, listeners, cotangent, retain=not last)
    return run.finish()


class _Backward:
    """The gradient sinks of one backward, and which parameters still wait for which of them."""

    def __init__(
        self,
        forward: Forward,
        groups: Sequence[TiedParameters],
        orders: Sequence[float],
        last: bool,
    ) -> None:
        self._forward, self._orders, self._last = forward, orders, last
        self._waiting = {group: group.numbers for group in groups}
        self._found: dict[str, Tensor] = {}
        self.by_call: dict[int, list[TiedParameters]] = {}
        for group in groups:
            for number in group.numbers:
                self.by_call.setdefault(number, []).append(group)
        self._sinks = {
            number: GradientSink(forward.calls[number], forward.dimensions[number])
            for number in self.by_call
        }

    def listener(self, number: int, position: int) -> Callable[[Sequence[Tensor | None]], None]:
        """Return the hook that takes the gradient of one output of one call."""

        def arrive(arrived: Sequence[Tensor | None]) -> None:
            sink = self._sinks[number]
            sink.grads[position] = sink.call.edges[position].gradient(arrived)
            if all(grad is not None for grad in sink.grads):
                with torch.no_grad():
                    self._complete(number)

        return arrive

    def _complete(self, number: int) -> None:
        for group in self.by_call[number]:
            self._waiting[group].discard(number)
            if not self._waiting[group]:
                self._reduce(group)
        self._free(number)

    def _reduce(self, group: TiedParameters) -> None:
        del self._waiting[group]
        self._found |= group.norms(self._sinks, self._orders)
        for number in group.numbers:
            self._free(number)

    def _free(self, number: int) -> None:
        """Free a call's gradient, and its inputs, once no parameters wait for them."""
        if any(group in self._waiting for group in self.by_call[number]):
            return
        self._sinks.pop(number, None)
        if self._last:
            self._forward.calls[number].free()

    def finish(self) -> dict[str, Tensor]:
        """Reduce what still waits for outputs on which the logits do not depend."""
        for group in list(self._waiting):
            self._reduce(group)
        return self._found
