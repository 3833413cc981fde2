"""Whether what a model says of a sample depends on the batch that the sample is in, or on chance.

A sample's norm is what one backward of it alone gives. A forward of a whole batch gives the same
only where no sample's logits depend on the others, on its place, on their number or on chance.
Nothing in a model's code shows that for certain, so it is checked in float64, where rounding hides
nothing: the same samples alone, and in batches that are made to move any statistic.
"""

import copy
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from gradscore.copies import MODULES_OWN
from gradscore.errors import GradScoreWarning, ModelError, reason_of
from gradscore.network.collector import running_collector
from gradscore.network.comparison import EVERY, NONE, SOME, Comparison, Unknown
from gradscore.network.contents import is_own_hook
from gradscore.network.facts import hold_state, ignore_changes, state_of
from gradscore.network.forwards import expect_changes

Scope = frozenset[int]
"""Identities of the parameters whose gradients are checked as well."""

MOVED = 0.01
"""By what share of themselves parameters are moved; those that are zero, by this share of 0.1."""

PIECE = 2**18
"""About so many values of a parameter are moved at once."""

_WIDENED = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
_CASTS = frozenset({Tensor.float, Tensor.half, Tensor.bfloat16})


def check_independence(
    model: nn.Module, images: Tensor, selected: Collection[Tensor] = ()
) -> None:
    """Refuse a model in which a sample's logits, or gradients, depend on the rest of the batch.

    The first batch of a kind is checked at length, one of another number of samples by two
    forwards in float64, and what was checked before not at all. Of models whose way of a sample
    depends on the data, every batch is checked.

    Args:
        model: A classifier in eval mode; it is left as it is.
        images: Its input, shape ``[batch, ...]``.
        selected: The parameters whose gradients are asked for.

    Raises:
        ModelError: If they do, or if they are random.
    """
    if len(images):
        with hold_state(model):
            _check(model, images, selected)


def _check(model: nn.Module, images: Tensor, selected: Collection[Tensor]) -> None:
    found = state_of(model).found
    kind = check_independence, images.shape[1:], images.dtype, images.device
    checked: dict[int, set[Scope | None]] = found.setdefault(kind, {})
    each = bool(found.get(note_data_dependence))
    scopes = checked.get(len(images), ()) if not each else ()
    if None in scopes:
        return
    scope = frozenset(id(parameter) for parameter in selected)
    if scope in scopes:
        return
    with (
        running_collector(),
        torch.inference_mode(False),
        torch.autocast(images.device.type, enabled=False),
        warnings.catch_warnings(),
    ):
        images = images.clone() if images.is_inference() else images.detach()
        # A model's own warnings are for the caller's forward.
        warnings.simplefilter("ignore")
        try:
            thoroughness = EVERY if each else SOME if not checked else NONE
            checked_for = _check_copies(model, images, scope, thoroughness)
        except Unknown:  # the next batch will tell
            return
    checked.setdefault(len(images), set()).add(checked_for)
    _warn_once(found.get(_check_in_own_type, []))


def note_data_dependence(model: nn.Module) -> None:
    """Note that the way of a sample through a model depends on the data, as among experts.

    Whether its samples depend on each other may then differ from one batch to the next.
    """
    state_of(model).found[note_data_dependence] = True


def _check_copies(model: nn.Module, images: Tensor, scope: Scope, by_itself: int) -> Scope | None:
    """Return the parameters for which no sample depends on others, ``None`` for all of them.

    The logits may not depend on the rest of the batch where their gradients do, as those of a
    gate that closes the way to it. With the parameters moved a little, the logits show that too.

    Raises:
        ModelError: If a sample does depend on others.
    """
    everything = frozenset(id(parameter) for parameter in model.parameters())
    x = widened(images)
    for moved in dict.fromkeys((everything, scope, frozenset())):
        try:
            difference = _difference_in_copy(model, x, moved, by_itself)
        except Unknown:
            if moved:
                continue
            raise
        except Exception as error:  # whatever the model, or a part of it, does not take
            if moved:
                continue
            return _check_in_own_type(model, images, error)
        if not difference:
            return None if moved == everything else moved
        if moved == scope or not moved:
            raise _mixing_error(difference)
    raise AssertionError("the last of them answers")


def _difference_in_copy(
    model: nn.Module, images: Tensor, moved: Collection[int], by_itself: int
) -> float:
    """Return the largest difference that a copy of the model shows, which is freed on return."""
    comparison = Comparison(float64_copy(model, moved), Float64)
    if by_itself:
        ignore_changes(model, *comparison.changes(images))
    difference = comparison.difference(images, by_itself)
    if by_itself == SOME and not difference:
        difference = comparison.difference_on_synthetic(images)
    return difference


def _check_in_own_type(model: nn.Module, images: Tensor, reason: Exception) -> Scope:
    """Check the model itself where no copy runs in float64, and warn that it is less sure."""
    comparison = Comparison(model)
    try:
        ignore_changes(model, *comparison.changes(images))
        difference = comparison.difference(images, SOME)
    except Exception:  # what is wrong with it, the forward that follows will say
        return frozenset()
    if difference:
        raise _mixing_error(difference)
    state_of(model).found.setdefault(_check_in_own_type, [reason_of(reason)])
    return frozenset()


def _warn_once(reasons: list[str]) -> None:
    """Warn, once for a state of a model, that the check is less sure than usual, and why."""
    while reasons:
        warnings.warn(
            "That no image's logits depend on the rest of the batch was checked only to within "
            f"what rounding allows, for the model does not run in float64: {reasons.pop()}",
            GradScoreWarning,
            stacklevel=4,
        )


def _mixing_error(difference: float) -> ModelError:
    return ModelError(
        "Expected a model whose logits for an image do not depend on the rest of the batch, nor "
        "on chance, got a loss gradient that is off by "
        f"{min(difference, 1.0):.2g} of its size in another batch."
    )


def widened(x: Tensor) -> Tensor:
    """Return a floating-point or complex tensor in double precision, and any other as it is."""
    return x.to(_WIDENED[x.dtype]) if x.dtype in _WIDENED else x


def _widened_copy(x: Tensor) -> Tensor:
    """Return a copy of a tensor's values, in double precision where there is one of its kind."""
    return x.detach().to(_WIDENED.get(x.dtype, x.dtype), copy=True)


def float64_copy(model: nn.Module, moved: Collection[int]) -> nn.Module:
    """Return a copy of a model, to be run in :class:`Float64`, without hooks of this package.

    Args:
        model: The model.
        moved: Identities of parameters that get other values in the copy, a little off.

    Raises:
        Exception: Whatever a part of the model raises that cannot be copied.
    """
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(_widened_copy(parameter), requires_grad=False)
        for parameter in model.parameters()
        if type(parameter) is nn.Parameter
    }
    with torch.no_grad(), _Widening(memo):
        try:
            double = copy.deepcopy(model, dict(memo))
        except Exception:
            memo |= _shared(model, memo)
            double = copy.deepcopy(model, memo)
        if any(isinstance(module, torch.jit.ScriptModule) for module in double.modules()):
            double.double()
    draw = torch.Generator().manual_seed(0)
    for parameter, copied in zip(model.parameters(), double.parameters(), strict=True):
        if id(parameter) in moved and copied.is_floating_point():
            _move(copied.detach(), draw)
    for original, module in zip(model.modules(), double.modules(), strict=False):
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.padding_idx is not None:
            # What stands for padding is never trained, and often zero for a reason.
            row = widened(original.weight.detach()[module.padding_idx])
            module.weight.data[module.padding_idx] = row
    for module in double.modules():
        for name, hooks in vars(module).items():
            if name.endswith("_hooks"):
                for key in [key for key, hook in hooks.items() if is_own_hook(hook)]:
                    del hooks[key]
    expect_changes(model, double)
    return double


def _move(parameter: Tensor, draw: torch.Generator) -> None:
    """Add noise to a parameter, a piece at a time: all noise at once would take twice its memory.

    It is drawn in single precision, which takes a quarter of the time and is no less random.

    Args:
        parameter: Its values, detached; changed in place.
        draw: What the noise is drawn from.
    """
    rows = torch.atleast_1d(parameter)
    at_once = max(1, PIECE // max(1, rows[:1].numel()))
    for piece in rows.split(at_once):
        noise = torch.randn(piece.shape, generator=draw, dtype=torch.float32).to(piece)
        piece += noise.mul_(MOVED).mul_(torch.where(piece == 0, 0.1, piece))


def _shared(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """Return what cannot be copied of a model, such as locks, for the copy to share."""
    shared = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in MODULES_OWN:
                try:
                    copy.deepcopy(value, dict(memo))
                except Exception:  # whatever such a thing raises
                    shared[id(value)] = value
    return shared


class _Widening(TorchFunctionMode):
    """Copy tensors in double precision, those with a graph among them."""

    def __init__(self, memo: dict[int, Any]) -> None:
        super().__init__()
        self._memo = memo

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Copy a tensor, or run what is called as it is."""
        if func is not Tensor.__deepcopy__:
            # Parameters that the model does not list clone their data.
            result = func(*args, **(kwargs or {}))
            return widened(result) if func is Tensor.clone else result
        tensor = args[0]
        if id(tensor) not in self._memo:
            self._memo[id(tensor)] = _widened_copy(tensor)
        return self._memo[id(tensor)]


class Float64(TorchFunctionMode):
    """Let every function that is called inside return double precision.

    Many models ask for single precision here and there, or make tensors of the default type.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a call in double precision."""
        if func in _CASTS:
            return widened(args[0])
        args = tuple([_WIDENED.get(x, x) if isinstance(x, torch.dtype) else x for x in args])
        kwargs = dict(kwargs or {})
        if isinstance(kwargs.get("dtype"), torch.dtype):
            kwargs["dtype"] = _WIDENED.get(kwargs["dtype"], kwargs["dtype"])
        result = func(*args, **kwargs)
        if (args and result is args[0]) or kwargs.get("out") is not None:  # written in place
            return result
        if isinstance(result, Tensor):
            return widened(result)
        return tree_map_only(Tensor, widened, result) if type(result) in (tuple, list) else result
