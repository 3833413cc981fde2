"""Forwards as they are seen: their code as it is written, and observers of their modules.

A compiled module calls no function that could be seen. Activation checkpointing keeps no results
and runs its block again in the backward, where no recorder listens; kept results give the same
gradients.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointFunction

Observer = Callable[[str, tuple[Any, ...], Any], Any]
"""Gets a module's name, the positional arguments of a call, and its output."""


class _Thread(threading.local):
    """Which contexts of this module a thread has open."""

    eager = 0
    probes = 0


_THREAD = _Thread()
_ORIGINAL = saved_tensors_hooks.__enter__, saved_tensors_hooks.__exit__, CheckpointFunction.apply
_CHANGING = threading.Lock()
_opened = 0


@contextmanager
def observe(
    modules: Mapping[str, nn.Module], observer: Observer, *, inputs: bool = False
) -> Iterator[None]:
    """Call a function after each call of some modules, on this thread and outside of probes.

    >>> layer, seen = nn.Linear(4, 3), []
    >>> with observe({"fc": layer}, lambda name, args, output: seen.append((name, output.shape))):
    ...     logits = layer(torch.ones(2, 4))
    >>> seen
    [('fc', torch.Size([2, 3]))]

    Args:
        modules: The modules by the names that the observer gets.
        observer: What it returns instead of None replaces the module's output.
        inputs: Whether it is called before the module, with None as output; what it returns then
            replaces the module's arguments.
    """
    thread, probes = threading.get_ident(), _THREAD.probes

    def hook(name: str, _: nn.Module, args: tuple[Any, ...], output: Any = None) -> Any:
        if threading.get_ident() == thread and _THREAD.probes == probes:
            return observer(name, args, output)
        return None

    with ExitStack() as stack:
        for name, module in modules.items():
            register = module.register_forward_pre_hook if inputs else module.register_forward_hook
            stack.callback(register(_named(hook, name)).remove)
        yield


def _named(hook: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda *call: hook(name, *call)


@contextmanager
def unobserved() -> Iterator[None]:
    """Hide forwards that only find something out from observers that were there before."""
    _THREAD.probes += 1
    try:
        yield
    finally:
        _THREAD.probes -= 1


def is_own_hook(hook: Any) -> bool:
    """Say whether a hook of a module is one of this package."""
    return (getattr(hook, "__module__", None) or "").startswith("gradscore.")


@contextmanager
def force_eager() -> Iterator[None]:
    """Run compiled modules as they were written, and checkpointed blocks as any other.

    Both kinds of checkpointing of ``torch.utils.checkpoint`` are meant, and with them all other
    hooks on saved tensors, such as those that keep them in another memory. Names bound to torch's
    functions in other modules are served too: what changes is what those functions use.
    """
    _count(1)
    _THREAD.eager += 1
    try:
        with ExitStack() as stack:
            # Where nothing was compiled dynamo is not loaded, and loading it takes seconds.
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        _THREAD.eager -= 1
        _count(-1)


def _count(change: int) -> None:
    """Count the open contexts of all threads, and restore torch after the last.

    Torch has no setting for this. What ``checkpoint`` uses is replaced while a context is open;
    other threads may train with checkpointing meanwhile, so that the replacements ask which
    thread calls them.
    """
    global _opened
    with _CHANGING:
        _opened += change
        if _opened == 0:
            saved_tensors_hooks.__enter__, saved_tensors_hooks.__exit__ = _ORIGINAL[:2]
            del CheckpointFunction.apply
        elif _opened == change == 1:
            saved_tensors_hooks.__enter__, saved_tensors_hooks.__exit__ = _enter, _exit
            CheckpointFunction.apply = staticmethod(_apply)


def _enter(hooks: Any) -> Any:
    hooks.ignored = _THREAD.eager > 0
    return None if hooks.ignored else _ORIGINAL[0](hooks)


def _exit(hooks: Any, *error: object) -> None:
    # Entered before the first context opened, it has no such attribute.
    if not getattr(hooks, "ignored", False):
        _ORIGINAL[1](hooks, *error)


def _apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    if _THREAD.eager:
        return function(*args)
    return _ORIGINAL[2](function, preserve_rng_state, *args)
