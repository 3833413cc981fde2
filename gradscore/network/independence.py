"""Whether what a model says of a sample depends on the batch that the sample is in, or on chance.

A sample's norm is what one backward of it alone gives. A forward of a whole batch gives the same
only where no sample's logits depend on the others, on its place, on their number or on chance.
Nothing in a model's code shows that for certain, so it is checked in float64, where rounding hides
nothing: the same samples alone, and in batches that are made to move any statistic.
"""

import warnings
from collections.abc import Collection

import torch
from torch import Tensor, nn

from gradscore.errors import GradScoreWarning, ModelError
from gradscore.network.comparison import EVERY, NONE, SOME, Comparison, Unknown
from gradscore.network.facts import hold_state, ignore_changes, state_of
from gradscore.network.float64 import float64_copy, widened

Scope = frozenset[int]
"""Identities of the parameters whose gradients are checked as well."""


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
            comparison = Comparison(float64_copy(model, moved), in_float64=True)
            if by_itself:
                ignore_changes(model, *comparison.changes(x))
            difference = comparison.difference(x, by_itself)
            if by_itself == SOME and not difference:
                difference = comparison.difference_on_synthetic(x)
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


def _check_in_own_type(model: nn.Module, images: Tensor, reason: Exception) -> Scope:
    """Check the model itself where no copy runs in float64, and warn that it is less sure."""
    comparison = Comparison(model, in_float64=False)
    try:
        ignore_changes(model, *comparison.changes(images))
        difference = comparison.difference(images, SOME)
    except Exception:  # what is wrong with it, the forward that follows will say
        return frozenset()
    if difference:
        raise _mixing_error(difference)
    state_of(model).found.setdefault(_check_in_own_type, [str(reason).partition("\n")[0]])
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
