"""What is known of a model, and in which of its states.

Whatever is checked of a model holds for what it was made of at that time: its modules, weights and
settings. To look at all of them from the outside takes a small part of a forward.
"""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradscore.network.contents import Contents, Fingerprint, Place, contents_of, walk
from gradscore.network.listing import Listing, Outline

ONE_AT_A_TIME = threading.RLock()
"""Held while a model is not as its owner left it: threads may share models, or parameters."""

MOST_STATES = 8
"""How many states of a model are remembered; going back to one finds what was known of it."""

Fact = TypeVar("Fact")


@dataclass(eq=False)
class State:
    """A state of a model, and what was found out about the model while it was in it.

    Attributes:
        contents: What the model was made of, and what surrounded it.
        found: Whatever was found out, by who asked; it is forgotten with the state.
    """

    contents: Contents
    found: dict[Hashable, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Facts:
    """What is known of a model, whatever state it is in.

    Attributes:
        states: The states that it was in, the latest first.
        fingerprint: Of the latest state; None where it has to be looked at at length.
        outline: Gives the model's listing while the fingerprint holds; None where it has to be
            walked through.
        ignored: What a forward itself changes, such as counters and caches: no part of a state.
        changed_parameters: Parameters that a forward was seen to change, by identity; None before
            the first forward.
        buffer_copies: Its buffers by identity, with version counters and copies.
    """

    states: list[State] = field(default_factory=list)
    fingerprint: Fingerprint | None = None
    outline: Outline | None = None
    ignored: frozenset[Place] = frozenset()
    changed_parameters: dict[int, Tensor] | None = None
    buffer_copies: dict[int, tuple[Tensor, int, Tensor]] = field(default_factory=dict)


_FACTS: WeakKeyDictionary[nn.Module, Facts] = WeakKeyDictionary()

_HELD = threading.local()
"""State, listing and passed checks of models, by identity, that :func:`hold_state` holds."""


def facts_of(model: nn.Module) -> Facts:
    """Return what is known of a model, to be added to."""
    facts = _FACTS.get(model)
    if facts is None:
        facts = _FACTS[model] = Facts()
    return facts


def state_of(model: nn.Module) -> State:
    """Return the state that a model is in: the same object for as long as nothing changes.

    States differ in the identity of a module, parameter, buffer or hook; in the version counters
    and the memory of tensors; in the values of other attributes, training flags among them; in
    what its classes and the modules of their code hold; and in the caller's autocast and default
    type. Hooks of this package are left out, and so is what a forward itself changes, once
    :func:`ignore_changes` has it.

    Args:
        model: The model.
    """
    held = _HELD.__dict__.get(id(model))
    if held is not None:
        return held[0]
    with ONE_AT_A_TIME:
        facts = facts_of(model)
        states = facts.states
        if states and facts.fingerprint and facts.fingerprint.holds():
            return states[0]
        contents, modules = walk(model, facts.ignored)
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in modules)
        facts.fingerprint = None if scripted else Fingerprint(modules)
        facts.outline = None
        state = next((other for other in states if other.contents == contents), None)
        if state is None:
            state = State(contents)
        elif state is states[0]:
            return state
        else:
            states.remove(state)
        states.insert(0, state)
        del states[MOST_STATES:]
        return state


def remembered(
    find: Callable[[nn.Module, Tensor], Fact], model: nn.Module, images: Tensor
) -> Fact:
    """Return what a function finds of a model, once for its state and input of one kind.

    Args:
        find: Finds it out.
        model: The model.
        images: Its input, shape ``[batch, ...]``.
    """
    found, question = state_of(model).found, (find, images.shape[1:], images.dtype)
    if question not in found:
        found[question] = find(model, images)
    return found[question]


@contextmanager
def hold_state(model: nn.Module) -> Iterator[None]:
    """Look at a model once for all that asks for its state, or its listing, inside on this thread.

    What our own forwards change for a while, such as autocast, is then no other state.

    Args:
        model: The model, of which the caller changes nothing inside.
    """
    key = id(model)
    if key in _HELD.__dict__:
        yield
        return
    with ONE_AT_A_TIME:
        _HELD.__dict__[key] = state_of(model), _listing_in_state(model), set()
    try:
        yield
    finally:
        del _HELD.__dict__[key]


def listing_of(model: nn.Module) -> Listing:
    """Return the modules, parameters and buffers of a model: one listing while it is held.

    Args:
        model: The model.
    """
    held = _HELD.__dict__.get(id(model))
    return Listing.of(model) if held is None else held[1]


def passed_checks(model: nn.Module) -> set[Hashable]:
    """Return the checks that a model has passed while it is held, to be added to.

    Args:
        model: The model.
    """
    held = _HELD.__dict__.get(id(model))
    return set() if held is None else held[2]


def _listing_in_state(model: nn.Module) -> Listing:
    """Return the listing of a model whose state was just looked at."""
    facts = facts_of(model)
    if facts.outline is not None:
        return facts.outline.listing()
    listing = Listing.of(model)
    if facts.fingerprint is not None and listing.by_plain_walks:
        facts.outline = Outline(listing)
    return listing


def ignore_changes(model: nn.Module, before: Contents, after: Contents) -> None:
    """Leave what a forward itself changed out of the states of a model, from now on.

    The state that the model is in stays the same object.

    Args:
        model: The model.
        before: Contents of the model, or of a copy of it, before a forward.
        after: The same after it.
    """
    absent = object()
    changed = {
        (number, name)
        for number, (old, new) in enumerate(zip(before, after, strict=False))
        for name in old.keys() | new.keys()
        if old.get(name, absent) != new.get(name, absent)
    }
    with ONE_AT_A_TIME:
        facts = facts_of(model)
        if changed <= facts.ignored:
            return
        state = state_of(model)
        facts.ignored |= changed
        state.contents = [state.contents[0], *contents_of(model, facts.ignored)[1:]]
        facts.states, facts.fingerprint, facts.outline = [state], None, None
