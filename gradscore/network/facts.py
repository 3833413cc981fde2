"""In which state a model is, and what was found out about it in that state.

Whatever is proved of a model holds for what it was made of at that time: its modules, weights and
settings. A state is told by looking at all of them from the outside, which takes a small part of
a forward; weights are not read, but for those of a few elements.
"""

import itertools
import threading
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradscore.network.fingerprint import PLAIN, Fingerprint, Same, class_places, marks_of
from gradscore.network.observation import is_own_hook

ONE_AT_A_TIME = threading.RLock()
"""Held while a model is not as its owner left it: threads may share models, or parameters."""

CLASSES = "classes"
"""Entry of the surroundings for what a model's classes and the modules of their code hold."""

MOST_STATES = 8
"""How many states of a model are remembered; going back to one finds what was known of it."""

MOST_ENTRIES = 64
"""Larger containers that a module keeps are told by their identity and length alone."""

Contents = Sequence[dict[str, Any]]
"""What each module of a model holds, by name, in the order of a walk through the model."""

Answer = TypeVar("Answer")

Place = tuple[int, str]
"""Where something is in the contents: number of the module, and name in it."""

_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
_EMPTY = frozenset({dict, OrderedDict, set})
_WITHOUT_SETTINGS = (type, types.ModuleType, types.FunctionType, types.MethodType, torch.Generator)


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
        ignored: What a forward itself changes, such as counters and caches: no part of a state.
        changed_parameters: Parameters that a forward was seen to change, by identity; None before
            the first forward.
        buffer_copies: Its buffers by identity, with version counters and copies.
    """

    states: list[State] = field(default_factory=list)
    fingerprint: Fingerprint | None = None
    ignored: frozenset[Place] = frozenset()
    changed_parameters: dict[int, Tensor] | None = None
    buffer_copies: dict[int, tuple[Tensor, int, Tensor]] = field(default_factory=dict)


_FACTS: WeakKeyDictionary[nn.Module, Facts] = WeakKeyDictionary()

_SERIALS: dict[int, tuple[weakref.ref, int]] = {}
_NUMBERS = itertools.count()

_HELD = threading.local()
"""States of models, by identity, that :func:`hold_state` holds."""


def facts_of(model: nn.Module) -> Facts:
    """Return what is known of a model, to be added to."""
    facts = _FACTS.get(model)
    if facts is None:
        facts = _FACTS[model] = Facts()
    return facts


def state_of(model: nn.Module) -> State:
    """Return the state that a model is in: the same object for as long as nothing changes.

    A state is told by the identity of every module, parameter, buffer and hook; by the version
    counters and the memory of tensors; by the values of other attributes, training flags among
    them; by what its classes and the modules of their code hold; and by the caller's autocast and
    default type. Hooks of this package are left out, and
    so is what a forward itself changes, once :func:`ignore_changes` was told of it.

    Args:
        model: The model.
    """
    held = _HELD.__dict__.get(id(model))
    if held is not None:
        return held
    with ONE_AT_A_TIME:
        facts = facts_of(model)
        states, known = facts.states, facts.fingerprint
        if states and known and _around(states[0]) == _surroundings() and known.holds():
            return states[0]
        contents, modules = _walk(model, facts.ignored)
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in modules)
        facts.fingerprint = (
            None if scripted else Fingerprint(modules, lambda value: _of(value, [], set()))
        )
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


def remembered(model: nn.Module, question: Hashable, find: Callable[[], Answer]) -> Answer:
    """Return what is known of a model in its state, and find it out where it is not.

    Args:
        model: The model.
        question: What is asked, and of what kind of input.
        find: Finds it out.
    """
    found = state_of(model).found
    if question not in found:
        found[question] = find()
    return found[question]


@contextmanager
def hold_state(model: nn.Module) -> Iterator[None]:
    """Look at a model once for all that asks for its state inside, on this thread.

    What our own forwards change for a while, such as autocast, is then no other state.

    Args:
        model: The model, of which the caller changes nothing inside.
    """
    key = id(model)
    if key in _HELD.__dict__:
        yield
        return
    _HELD.__dict__[key] = state_of(model)
    try:
        yield
    finally:
        del _HELD.__dict__[key]


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
        facts.states, facts.fingerprint = [state], None


def contents_of(model: nn.Module, without: Container[Place] = ()) -> Contents:
    """Return what a model is made of, as far as it can be told from the outside.

    Args:
        model: The model.
        without: What to leave out.
    """
    return _walk(model, without)[0]


def _walk(model: nn.Module, without: Container[Place]) -> tuple[Contents, list[nn.Module]]:
    contents, modules = [_surroundings()], []
    pending, seen = [model], {id(model)}
    while pending:
        modules.append(pending.pop())
        entries = _entries_of(modules[-1], pending, seen)
        if without:
            number = len(contents)
            entries = {name: x for name, x in entries.items() if (number, name) not in without}
        contents.append(entries)
    if (0, CLASSES) not in without:
        contents[0][CLASSES] = [(n, Same(place[n])) for place, n in class_places(modules)]
    return contents, modules


def _around(state: State) -> dict[str, Any]:
    """Return what surrounded a model in a state."""
    return {name: value for name, value in state.contents[0].items() if name != CLASSES}


def _surroundings() -> dict[str, Any]:
    """Return what a forward depends on besides the model."""
    autocasts = {
        f"autocast {device}": torch.get_autocast_dtype(device)
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    }
    return {"default": torch.get_default_dtype(), **autocasts}


def _entries_of(module: nn.Module, pending: list[nn.Module], seen: set[int]) -> dict[str, Any]:
    """Return what a module holds; modules that it holds are added to those that are pending."""
    entries: dict[str, Any] = {"": (_serial(module), type(module))}
    for name, value in module.__dict__.items():
        kind = value.__class__
        if kind in PLAIN:
            entries[name] = value
        elif kind in _EMPTY and not value:
            continue
        elif name in ("_parameters", "_buffers"):
            for key, tensor in value.items():
                entries[key] = tensor if tensor is None else _of_tensor(tensor)
        elif "hooks" in name and isinstance(value, dict):
            hooks = tuple(key for key, hook in value.items() if not is_own_hook(hook))
            if hooks:
                entries[name] = hooks
        else:
            entries[name] = _of(value, pending, seen)
    if isinstance(module, torch.jit.ScriptModule):
        for key, tensor in (*module.named_parameters(), *module.named_buffers()):
            entries[key] = _of_tensor(tensor)
    return entries


def _of(value: Any, pending: list[nn.Module], seen: set[int]) -> Any:
    """Return what tells a value from others, and from itself after a change."""
    if value.__class__ in PLAIN:
        return value
    if isinstance(value, Tensor):
        return _of_tensor(value)
    if isinstance(value, _CONTAINERS):
        if len(value) > MOST_ENTRIES:
            return id(value), len(value)
        entries = value.items() if isinstance(value, dict) else value
        return tuple([_of(entry, pending, seen) for entry in entries])
    if id(value) in seen:
        return _serial(value)
    seen.add(id(value))
    if isinstance(value, nn.Module):
        pending.append(value)
    elif not isinstance(value, _WITHOUT_SETTINGS) and hasattr(value, "__dict__"):
        return _serial(value), _of(vars(value), pending, seen)
    return _serial(value)


def _of_tensor(tensor: Tensor) -> tuple[Any, ...]:
    """Return what tells a tensor from others, and from itself after a change."""
    return _serial(tensor), *marks_of(tensor)


def _serial(thing: Any) -> int:
    """Return a number that nothing else ever has, which an ``id`` is not: those come again."""
    key = id(thing)
    known = _SERIALS.get(key)
    if known is not None:
        return known[1]
    try:
        reference = weakref.ref(thing, lambda _: _SERIALS.pop(key, None))
    except TypeError:  # its like are few, and held by the model
        return -key
    _SERIALS[key] = (reference, next(_NUMBERS))
    return _SERIALS[key][1]
