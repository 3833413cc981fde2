"""The recorder: one forward, and every call in which a selected parameter meets data.

Selected parameters require a gradient during the forward, all others do not. Calls that take only
parameters and constants run as they are, so that autograd knows how their results were made of
parameters. Where such a tensor meets data, the call gets a detached alias instead: no weight
gradient can then be computed, and a parameter that is still found in the graph of the logits was
used in a way that was not recorded.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import maybe_current_level
from torch.overrides import TorchFunctionMode

from gradscore.errors import ModelError
from gradscore.rules import find_rule
from gradscore.uses.arguments import Arguments, Slot, tensors_in
from gradscore.uses.functions import (
    BATCH_NORMS,
    COMPOSITES,
    DROPOUTS,
    EXPANSIONS,
    GUARDED,
    PASSIVE,
    UNRELATED,
    entered,
    is_in_place,
    keeps_batch_first,
    spreads,
)
from gradscore.uses.use import Edge, Root, Use

GLIMPSE = 16
"""Values kept of each row of data that a rule does not read."""


class Recorder(TorchFunctionMode):
    """Record the uses of parameters in the forward that runs inside.

    Args:
        selected: The parameters whose uses are wanted.
        constants: Buffers and other parameters: tensors that hold no data.
        batch: Number of samples.
        expansions: What to make of the calls that may spread a parameter over the batch, in
            order: ``True`` if they do. Beyond its end it is guessed by shape.
        survey: Only look at shapes; no graph of the data is built.

    Attributes:
        uses: The uses, in order.
        batch_first: Whether each call surely left the batch in axis 0.
        shapes: Shapes of the data that calls without selected parameters made, in order.
        start: The tensor at which the graph begins.
    """

    def __init__(
        self,
        selected: Iterable[Tensor],
        constants: Iterable[Tensor],
        batch: int,
        expansions: Iterable[bool] = (),
        survey: bool = False,
    ) -> None:
        super().__init__()
        self.uses: list[Use] = []
        self.batch_first = True
        self.shapes: list[torch.Size] = []
        self.start = torch.zeros((), requires_grad=True)
        self.expansions = list(expansions)
        self._batch, self._survey = batch, survey
        self._expansion = -1
        # Kept alive here, so that an id names one tensor for as long as the recorder lives.
        self._owned = {id(tensor): tensor for tensor in selected}
        self._constants = {id(tensor): tensor for tensor in constants}
        self._aliases: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one call and note what it does to parameters."""
        kwargs = dict(kwargs) if kwargs else {}
        if func in PASSIVE:
            return func(*args, **kwargs)
        if maybe_current_level() is not None:
            # Inside the model's own vmap or grad; what it uses there, the graph tells.
            self.batch_first = False
            return func(*args, **kwargs)
        touched = data = False
        for tensor in tensors_in(args, kwargs):
            if id(tensor) in self._owned:
                touched = True
            elif id(tensor) not in self._constants:
                data = True
        if not touched:
            return self._other(func, args, kwargs, data)
        if func in COMPOSITES:
            with self:
                return entered(func)(*args, **kwargs)
        if not data:
            return self._derive(func, args, kwargs)
        if func in UNRELATED or func is Tensor.__setitem__ or not torch.is_grad_enabled():
            self.batch_first = False
            return func(*args, **kwargs)
        return self._record(Arguments(func, args, kwargs))

    def _other(self, func: Callable[..., Any], args: Any, kwargs: Any, data: bool) -> Any:
        """Run a call without selected parameters."""
        if not data:
            result = func(*args, **kwargs)
            self._keep(result)
            return result
        if func in GUARDED:
            _refuse_training(func, args, kwargs)
        if self.batch_first and not keeps_batch_first(func, args, kwargs):
            self.batch_first = False
        if func is Tensor.__setitem__ or is_in_place(func):
            self._constants.pop(id(args[0]), None)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self.shapes.append(result.shape)
        return result

    def _derive(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a call of parameters and constants only."""
        if func in EXPANSIONS:
            self._expansion += 1
            if self._expansion == len(self.expansions):
                self.expansions.append(spreads(func, args, func(*args, **kwargs), self._batch))
            if self.expansions[self._expansion]:
                self.batch_first = False
                return self._record(Arguments(func, args, kwargs), self._expansion)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.shape[:1] == (self._batch,):
            # It may have been copied for every sample, by an index or repeat_interleave.
            self.batch_first = False
        self._keep(args[0] if func is Tensor.__setitem__ else result)
        return result

    def _keep(self, result: Any) -> None:
        """Remember a result that holds no data."""
        for tensor in tensors_in((result,), {}):
            if tensor.requires_grad:
                self._owned[id(tensor)] = tensor
            else:
                self._constants[id(tensor)] = tensor
                self.batch_first = False

    def _record(self, arguments: Arguments, expansion: int | None = None) -> Any:
        """Run a call in which parameters meet data, cut off from how they were made."""
        func = arguments.function
        _refuse_training(func, arguments.args, arguments.kwargs)
        tensors = arguments.tensors
        operands = tuple((slot, t) for slot, t in tensors if id(t) in self._owned)
        data = {slot: t for slot, t in tensors if id(t) not in self._owned}
        in_place = is_in_place(func)
        if in_place and not _can_change(arguments.args[0], self._owned):
            self._owned.pop(id(arguments.args[0]), None)
            return arguments.call()

        plain = arguments.replaced({slot: self._alias(tensor) for slot, tensor in operands})
        rules = [find_rule(func, arguments.name(slot)) for slot, _ in operands]
        reads = any(rule is None or rule.reads_data for rule in rules)
        kept = {slot: t.detach() if reads else _outside(t) for slot, t in data.items()}
        if in_place and reads:
            kept[0,] = kept[0,].clone()
        result = plain.call()
        outputs = [
            t
            for t in tensors_in((result,), {})
            if (t.is_floating_point() or t.is_complex())
            and (in_place or t is not result or all(t is not other for other in data.values()))
        ]
        if not outputs:
            return result
        if not self._survey:
            if expansion is not None:
                result = Root.apply(result, self.start, result._base is None)
                outputs = [result]
            elif not in_place and (len(outputs) > 1 or _shares_memory(outputs[0], plain)):
                result, outputs = _copied(result, outputs)
            for output in outputs:
                if not output.requires_grad:
                    Root.apply(output, self.start, True)
        if self.batch_first and not keeps_batch_first(func, arguments.args, arguments.kwargs):
            self.batch_first = False
        self.uses.append(
            Use(
                arguments=plain.replaced(kept),
                operands=operands,
                edges=() if self._survey else tuple(Edge.of(output) for output in outputs),
                output_shapes=tuple(output.shape for output in outputs),
                constants=frozenset(slot for slot, t in data.items() if id(t) in self._constants),
                glimpses={} if reads else self._glimpses(data),
                versions={slot: t._version for slot, t in kept.items()} if reads else {},
                expansion=expansion,
            )
        )
        return result

    def _glimpses(self, data: Mapping[Slot, Tensor]) -> dict[Slot, Tensor]:
        """Keep what tells how a sample's rows stand, where samples may have several."""
        return {
            slot: t.detach().flatten(1)[:, :GLIMPSE].clone()
            for slot, t in data.items()
            if t.ndim > 1 and len(t) != self._batch
        }

    def _alias(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._aliases:
            self._aliases[id(tensor)] = tensor.detach()
        return self._aliases[id(tensor)]


def _outside(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape without memory."""
    return torch.empty_like(tensor, device="meta")


def _shares_memory(output: Tensor, arguments: Arguments) -> bool:
    """Say whether an output is a view of an argument, such as a parameter expanded as data."""
    base = output._base
    return base is not None and any(base is t or base is t._base for _, t in arguments.tensors)


def _copied(result: Any, outputs: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """Give each output a node of its own in the graph.

    One output may be made of another, as a cell's hidden state of its state: the gradient that
    arrives where the other was made would hold what came through the first.
    """
    copies = {id(output): output.clone() for output in outputs}
    if not isinstance(result, Tensor):
        result = type(result)([copies.get(id(entry), entry) for entry in result])
    else:
        result = copies[id(result)]
    return result, [copies[id(output)] for output in outputs]


def _can_change(target: Tensor, owned: Mapping[int, Tensor]) -> bool:
    """Say whether the recorder can follow a change of ``target`` in place."""
    base = target._base
    return id(target) not in owned and (base is None or base.is_contiguous())


def _refuse_training(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> None:
    """Refuse a call that is random, or that mixes samples, as layers in train mode do."""
    if func in DROPOUTS:
        p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        if p > 0 and (args[2] if len(args) > 2 else kwargs.get("training", True)):
            raise ModelError(
                "Expected a model without active dropout, got a call of "
                f"{func.__name__} with p = {p}; call model.eval() first."
            )
    elif func in BATCH_NORMS:
        place = BATCH_NORMS[func]
        if args[place] if len(args) > place else kwargs.get("training", False):
            raise ModelError(
                "Expected batch norm with fixed statistics, got a call that takes them from the "
                "batch; call model.eval() first."
            )
