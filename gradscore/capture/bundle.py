"""Parameters whose gradients come together, and the reduction of those gradients to norms.

Most parameters are used once and stand alone. Those used more than once add the gradients of
their uses before the norm; those joined in one tensor, such as query and value bias, are pulled
back together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradscore.capture.arguments import Slot
from gradscore.capture.arrival import Arrival
from gradscore.capture.derivation import leaves_below, pull_back
from gradscore.capture.forward import Forward
from gradscore.capture.generic import Unserved, call_gradients
from gradscore.capture.layout import UseLayout
from gradscore.capture.standardisation import Standardisation
from gradscore.capture.use import Use
from gradscore.errors import ModelError
from gradscore.norms import vector_norm
from gradscore.rules import Rule
from gradscore.rules.rule import reduce_tiles

CHUNK_BYTES = {"cpu": 32 * 1024**2, "cuda": 1024**3}
"""Size of the per-sample gradients held at once where a rule has no cheaper form."""


@dataclass(frozen=True)
class Contribution:
    """One operand of one use.

    Attributes:
        number: Which use of the forward.
        slot: Which of its arguments.
        tensor: The parameter, or the tensor made of parameters.
        sources: The selected parameters it is, or is made of.
        direct: Whether it is the parameter itself.
    """

    number: int
    slot: Slot
    tensor: Tensor
    sources: tuple[str, ...]
    direct: bool


@dataclass(eq=False)
class Bundle:
    """Parameters that share contributions, and all that contributes to them."""

    names: tuple[str, ...]
    shapes: Mapping[str, torch.Size]
    contributions: tuple[Contribution, ...]
    forward: Forward
    by_reference: bool

    @property
    def uses(self) -> set[int]:
        """Numbers of the uses that contribute."""
        return {contribution.number for contribution in self.contributions}

    def rules(self) -> dict[str, str]:
        """Return what serves each parameter, by name."""
        if self.by_reference:
            return dict.fromkeys(self.names, "reference")
        return {
            name: " + ".join(
                dict.fromkeys(self._rule_name(c) for c in self.contributions if name in c.sources)
            )
            for name in self.names
        }

    def _rule_name(self, contribution: Contribution) -> str:
        number = contribution.number
        use, layout = self.forward.uses[number], self.forward.layouts[number]
        assert layout is not None, "uses without a layout are served by the reference"
        rule = rule_for(use, layout, contribution.slot)
        name = rule.name if rule else f"generic ({use.name})"
        return name if contribution.direct else f"{name}, pulled back"

    def norms(self, arrivals: Mapping[int, Arrival], orders: Sequence[float]) -> dict[str, Tensor]:
        """Return norms ``[batch, len(orders)]`` of each parameter.

        Where the generic rule cannot serve a call, nothing is returned, and the bundle is left
        to the reference.

        Args:
            arrivals: What the backward brought to each use, by its number; uses on which the
                logits do not depend are missing.
            orders: Orders of the norm.

        Raises:
            ModelError: If the model changed the input of a use in place after it was read.
        """
        arrived = [
            c
            for c in self.contributions
            if c.number in arrivals
            # Of no rows, as those of an expert that nobody is sent to, the gradient is zero.
            and any(g is not None and g.numel() for g in arrivals[c.number].grads)
        ]
        if not arrived:
            return {}
        for contribution in arrived:
            _check_unchanged(self.forward.uses[contribution.number])
        if any(_arrived_untold(arrivals[c.number]) for c in arrived):
            self.forward.forget()
            self.by_reference = True
            return {}
        if len(self.contributions) == len(self.names) == 1:
            short = self._short_form(arrived[0], arrivals[arrived[0].number], orders)
            if short is not None:
                return {self.names[0]: short}
        try:
            return self._by_chunks(arrived, arrivals, orders)
        except Unserved:
            self.by_reference = True
            return {}

    def _short_form(
        self, contribution: Contribution, arrival: Arrival, orders: Sequence[float]
    ) -> Tensor | None:
        rule = rule_for(arrival.use, arrival.layout, contribution.slot)
        made_by = None if contribution.direct else Standardisation.of(contribution.tensor)
        if rule is None or (rule.norms is None if contribution.direct else made_by is None):
            return None
        samples = len(self.forward.logits)
        argument = arrival.use.arguments.name(contribution.slot)
        call, grad = arrival.call(slice(0, samples))
        if made_by is None:
            return rule.norms(call, argument, grad, orders)
        if rule.tiles is None:
            return None
        tiles = rule.tiles(call, argument, grad)
        return reduce_tiles(tiles, orders, made_by.pull_back)

    def _by_chunks(
        self,
        arrived: Sequence[Contribution],
        arrivals: Mapping[int, Arrival],
        orders: Sequence[float],
    ) -> dict[str, Tensor]:
        logits = self.forward.logits
        sizes = [shape.numel() for shape in self.shapes.values()]
        sizes += [c.tensor.numel() for c in arrived if not c.direct]
        budget = CHUNK_BYTES.get(logits.device.type, CHUNK_BYTES["cpu"])
        step = max(1, budget // max(1, sum(sizes) * logits.element_size()))
        norms: dict[str, list[Tensor]] = {name: [] for name in self.names}
        for start in range(0, len(logits), step):
            part = slice(start, min(start + step, len(logits)))
            for name, gradient in self._gradients(arrived, arrivals, part).items():
                rows = gradient.reshape(len(gradient), -1)
                rows = rows.abs() if rows.is_complex() else rows
                norms[name].append(torch.stack([vector_norm(rows, p) for p in orders], dim=1))
        return {name: torch.cat(parts) for name, parts in norms.items() if parts}

    def _gradients(
        self, arrived: Sequence[Contribution], arrivals: Mapping[int, Arrival], part: slice
    ) -> dict[str, Tensor]:
        """Return the per-sample gradients of some samples, summed over uses, by parameter."""
        totals: dict[str, Tensor] = {}
        for contribution in arrived:
            for name, gradient in self._pulled(contribution, arrivals[contribution.number], part):
                totals[name] = totals[name] + gradient if name in totals else gradient
        return totals

    def _pulled(
        self, contribution: Contribution, arrival: Arrival, part: slice
    ) -> Iterator[tuple[str, Tensor]]:
        use, layout, slot = arrival.use, arrival.layout, contribution.slot
        rule = rule_for(use, layout, slot)
        if rule is None:
            (gradient,) = call_gradients(use, layout, (slot,), arrival.grads, part)
        else:
            call, grad = arrival.call(part)
            gradient = rule.gradient(call, use.arguments.name(slot), grad)
        if contribution.direct:
            yield contribution.sources[0], gradient
        else:
            edges = {name: self.forward.edges[name] for name in contribution.sources}
            gradient = gradient.to(contribution.tensor.dtype)
            yield from pull_back(contribution.tensor, edges, gradient).items()


def _arrived_untold(arrival: Arrival) -> bool:
    """Say whether gradients arrived where so far all were zero, of rows that may be anybody's."""
    grads = () if arrival.layout.told else arrival.grads
    return any(grad is not None and bool(grad.any()) for grad in grads)


def rule_for(use: Use, layout: UseLayout, slot: Slot) -> Rule | None:
    """Return the rule that serves an operand, or ``None`` if the generic one must."""
    rule = use.rules[slot]
    if rule is None or len(use.output_shapes) != 1:
        return None
    moved = any(at.axis for at in (*layout.arguments.values(), *layout.outputs))
    return None if moved and not rule.trailing else rule


def _check_unchanged(use: Use) -> None:
    tensors = dict(use.arguments.tensors)
    for slot, version in use.versions.items():
        if tensors[slot]._version != version:
            raise ModelError(
                f"Expected the inputs of {use.name} to stay as they were, got argument "
                f"{use.arguments.name(slot)!r} changed in place after the call."
            )


def bundles_of(forward: Forward, selected: Mapping[str, Tensor]) -> list[Bundle]:
    """Group the selected parameters that a forward used by what contributes to them."""
    names = {id(parameter): name for name, parameter in selected.items()}
    bundles: dict[str, tuple[set[str], list[Contribution]]] = {
        name: ({name}, []) for name in (selected if forward.differentiates else forward.uncovered)
    }
    for number, use in enumerate(forward.uses):
        for slot, tensor in use.operands:
            sources = _sources(tensor, names)
            if not sources:
                continue
            direct = id(tensor) in names
            joined: tuple[set[str], list[Contribution]] = (
                set(sources),
                [Contribution(number, slot, tensor, sources, direct)],
            )
            for members, contributions in {
                id(bundles[n]): bundles[n] for n in sources if n in bundles
            }.values():
                joined[0].update(members)
                joined[1][:0] = contributions
            bundles.update(dict.fromkeys(joined[0], joined))
    distinct = {id(bundle): bundle for bundle in bundles.values()}.values()
    return [_bundle(forward, selected, *bundle) for bundle in distinct]


def _sources(tensor: Tensor, names: Mapping[int, str]) -> tuple[str, ...]:
    if id(tensor) in names:
        return (names[id(tensor)],)
    leaves = leaves_below([tensor.grad_fn])
    return tuple(names[id(leaf)] for leaf in leaves if id(leaf) in names)


def _bundle(
    forward: Forward,
    selected: Mapping[str, Tensor],
    members: set[str],
    contributions: list[Contribution],
) -> Bundle:
    alone = len(members) == 1
    names = tuple(members if alone else (name for name in selected if name in members))
    unplaced = any(forward.layouts[c.number] is None for c in contributions)
    return Bundle(
        names=names,
        shapes={name: selected[name].shape for name in names},
        contributions=tuple(contributions),
        forward=forward,
        by_reference=unplaced
        or forward.differentiates
        or not forward.uncovered.isdisjoint(members)
        # A hook may change the gradient of a parameter.
        or any(selected[name]._backward_hooks for name in members),
    )
