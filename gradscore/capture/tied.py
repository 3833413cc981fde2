"""Tied parameters: those whose gradients come together, and the norms of these gradients.

Most parameters are taken once and stand alone. One that several calls take adds their gradients
before the norm; those joined in one tensor, such as query and value bias, are pulled back
together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscore.capture.forward import Forward
from gradscore.capture.gradients import (
    GradientSink,
    ParameterArgument,
    Unserved,
    rule_for,
)
from gradscore.capture.small_gradients import MOST_ENTRIES, SmallGradients
from gradscore.graph import leaves_below
from gradscore.norms import vector_norm
from gradscore.rules.rule import spans

CHUNK_BYTES = {"cpu": 32 * 1024**2, "cuda": 1024**3}
"""Size of the per-sample gradients held at once where a rule has no cheaper form."""


@dataclass(eq=False, slots=True)
class TiedParameters:
    """Parameters that share parameter arguments, and all of these.

    Attributes:
        names: Names of the parameters.
        shapes: Shapes of all parameters asked for, by name.
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
    def numbers(self) -> frozenset[int]:
        """Numbers of the recorded calls that take them."""
        return frozenset([argument.number for argument in self.arguments])

    def rules(self) -> dict[str, str]:
        """Return what serves each parameter, by name."""
        if self.by_reference:
            return dict.fromkeys(self.names, "reference")
        if len(self.arguments) == len(self.names) == 1:
            return {self.names[0]: self._rule_name(self.arguments[0])}
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
        self, sinks: Mapping[int, GradientSink], orders: Sequence[float], small: SmallGradients
    ) -> dict[str, Tensor]:
        """Return norms ``[batch, len(orders)]`` of each parameter.

        Where the generic rule cannot serve a call, nothing is returned, and the parameters are
        left to the reference.

        Args:
            sinks: What the backward brought to each recorded call, by its number.
            orders: Orders of the norm.
            small: Gets the gradient of a small parameter in place of its norms being returned.

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
            (argument,), (name,) = arrived, self.names
            sink, samples = sinks[argument.number], self.forward.logits.shape[0]
            short = argument.short_norms(sink, samples, orders)
            if short is not None:
                return {name: short}
            if argument.direct and samples * self.shapes[name].numel() <= MOST_ENTRIES:
                gradient = argument.by_rule(sink, slice(0, samples))
                if gradient is not None:
                    small.add(name, gradient, sink.grads[0])
                    return {}
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
        sizes = [self.shapes[name].numel() for name in self.names]
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
    groups: dict[str, _Group] = {
        name: ({name}, []) for name in (selected if forward.differentiates else forward.uncovered)
    }
    for number, call in enumerate(forward.calls):
        for slot, tensor in call.parameters:
            sources = _sources(tensor, names)
            if sources:
                argument = ParameterArgument(number, slot, tensor, sources, id(tensor) in names)
                _join(groups, sources, argument)
    distinct = {id(group): group for group in groups.values()}.values()
    shapes = {name: parameter.shape for name, parameter in selected.items()}
    return [_tied(forward, selected, shapes, *group) for group in distinct]


_Group = tuple[set[str], list[ParameterArgument]]
"""Names of parameters, and where calls take them: one object for all of its names."""


def _join(groups: dict[str, _Group], sources: Sequence[str], argument: ParameterArgument) -> None:
    """Add an argument to the group of its sources, which become one group."""
    first = groups.get(sources[0])
    if len(sources) == 1 and first is not None:
        first[1].append(argument)
        return
    joined: _Group = (set(sources), [argument])
    for members, arguments in {id(groups[n]): groups[n] for n in sources if n in groups}.values():
        joined[0].update(members)
        joined[1][:0] = arguments
    groups.update(dict.fromkeys(joined[0], joined))


def _sources(tensor: Tensor, names: Mapping[int, str]) -> tuple[str, ...]:
    if id(tensor) in names:
        return (names[id(tensor)],)
    leaves = leaves_below([tensor.grad_fn])
    return tuple(names[id(leaf)] for leaf in leaves if id(leaf) in names)


def _tied(
    forward: Forward,
    selected: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    members: set[str],
    arguments: list[ParameterArgument],
) -> TiedParameters:
    alone = len(members) == 1
    names = tuple(members if alone else (name for name in selected if name in members))
    unknown = any(forward.dimensions[argument.number] is None for argument in arguments)
    return TiedParameters(
        names=names,
        shapes=shapes,
        arguments=tuple(arguments),
        forward=forward,
        by_reference=unknown
        or forward.differentiates
        or not forward.uncovered.isdisjoint(members)
        # A hook may change the gradient of a parameter.
        or any(selected[name]._backward_hooks for name in members),
    )
