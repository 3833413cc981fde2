"""Forwards as their code is written: nothing compiled, nothing computed again in the backward.

A compiled module calls no function that could be seen. Activation checkpointing keeps no results
and runs its block again in the backward, where no recorder listens; kept results give the same
gradients.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointFunction


class _Keeping(threading.local):
    """Whether a thread keeps results: other threads may train with checkpointing meanwhile."""

    depth = 0


_KEEPING = _Keeping()
_ORIGINAL = saved_tensors_hooks.__enter__, saved_tensors_hooks.__exit__, CheckpointFunction.apply
_CHANGING = threading.Lock()
_opened = 0


@contextmanager
def force_eager() -> Iterator[None]:
    """Run compiled modules as they were written, and checkpointed blocks as any other.

    Both kinds of checkpointing of ``torch.utils.checkpoint`` are meant, and with them all other
    hooks on saved tensors, such as those that keep them in another memory. Names bound to torch's
    functions elsewhere are served too: what changes is what those functions use.
    """
    _count(1)
    _KEEPING.depth += 1
    try:
        with ExitStack() as stack:
            # Where nothing was compiled dynamo is not loaded, and loading it takes seconds.
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        _KEEPING.depth -= 1
        _count(-1)


def _count(change: int) -> None:
    """Count the open contexts of all threads, and restore torch after the last."""
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
    hooks.ignored = _KEEPING.depth > 0
    return None if hooks.ignored else _ORIGINAL[0](hooks)


def _exit(hooks: Any, *error: object) -> None:
    # Entered before the first context opened, it has no such attribute.
    if not getattr(hooks, "ignored", False):
        _ORIGINAL[1](hooks, *error)


def _apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
    if _KEEPING.depth:
        return function(*args)
    return _ORIGINAL[2](function, preserve_rng_state, *args)
