"""The recorder: one forward, and every call in which a selected parameter meets data.

Selected parameters require a gradient during the forward, all others do not. Calls that take only
parameters and constants run as they are, so that autograd knows how their results were derived
from parameters. Where such a tensor meets data, the call gets a detached alias instead: no weight
gradient can then be computed, and a parameter that is still found in the graph of the logits was
used in a way that was not recorded.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level
from torch.overrides import TorchFunctionMode

from gradscore.capture.batch_dimension import broadcasts_over_batch, reads_values
from gradscore.capture.calls import (
    Arguments,
    RecordedCall,
    TracedCall,
    autocast_type,
    first_argument,
    fixed_arguments,
    tensors_and_others,
    tensors_in,
    without_memory,
)
from gradscore.capture.functions import (
    Traits,
    entered,
    indexes_by_data,
    refuse_training,
    traits_of,
)
from gradscore.graph import Edge, GraphStart, copied_outputs, is_differentiable, is_view_of
from gradscore.rules import find_rules
from gradscore.rules.broadcast import EXPANSIONS


class Recorder(TorchFunctionMode):
    """Record the calls that take parameters in the forward that runs inside.

    Args:
        selected: The parameters whose calls are wanted.
        constants: Buffers and other parameters: tensors that hold no data.
        batch: Number of samples.
        expansions: What to make of the calls that may broadcast a parameter over the batch, in
            order: ``True`` if they do. Beyond its end it is guessed by shape.

    Attributes:
        calls: The recorded calls, in order.
        trace: Every call with data, in order, the recorded ones among them.
        logits: What the model returned, once it has.
        start: The tensor at which the graph begins.
        expansions: What was made of the calls that may broadcast a parameter over the batch.
        data_dependent: Whether where samples are may depend on the values of data.
        forget: Forgets the batch dimensions that are kept for such a forward.
        unlisted: Parameters that the model does not list, by their identity.
        differentiates: Whether the forward takes gradients of its own, or changes those to come.
    """

    logits: Tensor

    def __init__(
        self,
        selected: Iterable[Tensor],
        constants: Iterable[Tensor],
        batch: int,
        expansions: Iterable[bool] = (),
    ) -> None:
        super().__init__()
        self.calls: list[RecordedCall] = []
        self.trace: list[TracedCall] = []
        self.start = torch.zeros((), requires_grad=True, device="cpu")
        self.expansions = list(expansions)
        self.data_dependent = self.differentiates = False
        self.forget: Callable[[], object] = lambda: None
        self.unlisted: dict[int, Tensor] = {}
        self._batch = batch
        self._expansion = -1
        # Kept alive here, so that an id names one tensor for as long as the recorder lives.
        self._owned = {id(tensor): tensor for tensor in selected}
        self._constants = {id(tensor): tensor for tensor in constants}
        self._aliases: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call and note what it does to parameters."""
        kwargs = dict(kwargs) if kwargs else {}
        traits = traits_of(func)
        # Inside the model's own vmap or grad, the graph shows what it takes there.
        if traits.passive or maybe_current_level() is not None:
            return func(*args, **kwargs)
        if traits.derives:
            self.differentiates = True
            return func(*args, **kwargs)
        owned, constants = self._owned, self._constants
        touched, data = False, []
        tensors, others = tensors_and_others(args, kwargs)
        for _, tensor in tensors:
            if id(tensor) in owned:
                touched = True
            elif id(tensor) not in constants:
                data.append(tensor)
                if type(tensor) is nn.Parameter:
                    self.unlisted[id(tensor)] = tensor
        if touched and traits.composite:
            with self:
                return entered(func)(*args, **kwargs)
        if not data:
            return self._derive(func, args, kwargs, touched)
        if traits.trains:
            refuse_training(func, args, kwargs)
        if traits.indexes:
            self.data_dependent |= indexes_by_data(func, data)
        if traits.writes or "out" in kwargs:
            for target in _changed(traits, args, kwargs):
                self._forget(target)
        if touched and traits.related and torch.is_grad_enabled():
            return self._record(Arguments(func, args, kwargs, tensors), others)
        return self._traced(func, others, func(*args, **kwargs))

    def _traced(self, func: Callable[..., Any], others: Sequence[Any], result: Any) -> Any:
        """Note what a call with data returned."""
        if isinstance(result, Tensor):
            results: Any = ((result.shape, result.dtype),)
        else:
            self.data_dependent |= reads_values(func, result)
            results = tuple([(t.shape, t.dtype) for t in tensors_in((result,), {})])
        self.trace.append(TracedCall(func, results, fixed_arguments(others)))
        return result

    def _derive(self, func: Callable[..., Any], args: Any, kwargs: Any, touched: bool) -> Any:
        """Run a call of parameters and constants only."""
        if touched and func in EXPANSIONS:
            self._expansion += 1
            if self._expansion == len(self.expansions):
                source, result = first_argument(args, kwargs), func(*args, **kwargs)
                self.expansions.append(broadcasts_over_batch(source, result, self._batch))
            if self.expansions[self._expansion]:
                tensors, others = tensors_and_others(args, kwargs)
                return self._record(
                    Arguments(func, args, kwargs, tensors), others, self._expansion
                )
        result = func(*args, **kwargs)
        self._keep(args[0] if func is Tensor.__setitem__ else result)
        return result

    def _keep(self, result: Any) -> None:
        """Remember a result that holds no data."""
        for tensor in tensors_in((result,), {}):
            if tensor.requires_grad:
                self._owned[id(tensor)] = tensor
            else:
                self._constants[id(tensor)] = tensor

    def _forget(self, target: Tensor) -> None:
        """Take a tensor into which data are written for data, with all that share its memory."""
        base = target if target._base is None else target._base
        for known in (self._owned, self._constants):
            if known.keys() & {id(target), id(base)}:
                for key, tensor in list(known.items()):
                    if tensor is target or tensor is base or tensor._base is base:
                        del known[key]

    def _record(
        self, arguments: Arguments, others: Sequence[Any], expansion: int | None = None
    ) -> Any:
        """Run a call in which parameters meet data, cut off from how they were derived."""
        func, tensors, owned = arguments.function, arguments.tensors, self._owned
        parameters = tuple([pair for pair in tensors if id(pair[1]) in owned])
        data = {slot: t for slot, t in tensors if id(t) not in owned}
        in_place = traits_of(func).in_place
        target = arguments.first
        if not parameters or (in_place and not _can_change(data.get(target))):
            return self._traced(func, others, arguments.call())

        # Autograd computes a gradient for each argument that requires one, summed over the batch.
        # No such sum is of use here, and it would cost as much as all the rules.
        # A detached alias has the parameter's values and requires none.
        plain = arguments.replaced({slot: self._alias(tensor) for slot, tensor in parameters})
        names = [arguments.name(slot) for slot, _ in parameters]
        found = find_rules(func, names, [t for _, t in tensors], arguments.named)
        rules = {slot: rule for (slot, _), rule in zip(parameters, found, strict=True)}
        reads = any(rule is None or rule.reads_data for rule in found)
        constants = frozenset([slot for slot, t in data.items() if id(t) in self._constants])
        kept = {
            slot: _kept(t, constant=slot in constants) if reads else without_memory(t)
            for slot, t in data.items()
        }
        if in_place and reads:
            # The call overwrites what it read: its rule needs the values from before.
            kept[target] = kept[target].clone()
        result = self._traced(func, others, plain.call())
        outputs = [t for t in tensors_in((result,), {}) if is_differentiable(t)]
        if not in_place and any(result is other for other in data.values()):
            outputs = []
        if not outputs:
            return result
        if not in_place:
            result, outputs = self._separated(result, outputs, plain, expansion is not None)
        for output in outputs:
            if not output.requires_grad:
                GraphStart.apply(output, self.start, True)
        self.calls.append(
            RecordedCall(
                arguments=plain.replaced(kept),
                parameters=parameters,
                rules=rules,
                edges=tuple([Edge.of(output) for output in outputs]),
                output_shapes=tuple([output.shape for output in outputs]),
                constants=constants,
                versions={slot: t._version for slot, t in kept.items()} if reads else {},
                autocast=autocast_type(outputs[0]),
                expansion=expansion,
            )
        )
        return result

    def _separated(
        self, result: Any, outputs: list[Tensor], arguments: Arguments, expanded: bool
    ) -> tuple[Any, list[Tensor]]:
        """Return a result, and its outputs with a node in the graph that is theirs alone."""
        if expanded:
            # An expanded parameter is a view of the alias.
            # Tied to the graph in place, the alias would need a gradient, in every later call.
            # A repeated one has memory of its own, and needs no copy.
            result = GraphStart.apply(result, self.start, result._base is None)
            return result, [result]
        if len(outputs) > 1 or is_view_of(outputs[0], (t for _, t in arguments.tensors)):
            return copied_outputs(result, outputs)
        return result, outputs

    @property
    def coarsest(self) -> torch.dtype:
        """The coarsest floating type among what calls returned."""
        types = {dtype for call in self.trace for _, dtype in call.results}
        floating = {dtype for dtype in types if dtype.is_floating_point} | {self.logits.dtype}
        return max(floating, key=lambda dtype: torch.finfo(dtype).eps)

    def free_graph(self) -> None:
        """Free the graph and the data; what was called, and with which shapes, remains."""
        for call in self.calls:
            call.free_graph()
        self.logits = self.logits.detach()
        self._owned, self._constants, self._aliases = {}, {}, {}

    def _alias(self, tensor: Tensor) -> Tensor:
        alias = self._aliases.get(id(tensor))
        if alias is None:
            alias = self._aliases[id(tensor)] = tensor.detach()
        return alias


def _changed(traits: Traits, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Yield the tensors into which a call writes."""
    written = [kwargs.get("out")]
    if traits.writes:
        written.append(first_argument(args, kwargs))
    yield from (tensor for tensor in written if isinstance(tensor, Tensor))


def _kept(tensor: Tensor, constant: bool) -> Tensor:
    """Return the values of an argument without their graph; a constant that has none is kept."""
    return tensor if constant and not tensor.requires_grad else tensor.detach()


def _can_change(target: Tensor | None) -> bool:
    """Say whether the recorder can follow a change of a tensor in place."""
    return target is not None and (target._base is None or target._base.is_contiguous())
