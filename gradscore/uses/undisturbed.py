"""Forwards of which nothing remains in the model, whatever it keeps between them.

A model may keep what it makes: a table derived from its weights once for all forwards, its latest
features, a counter. Kept from one of our forwards, a derived table would hide the weights behind
it from the next, and the features would hold a whole graph.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradscore.outputs import logits_of

ONE_AT_A_TIME = threading.RLock()
"""Held while a model is not as its owner left it: threads may share models, or parameters."""

_CONTAINERS = (dict, list, set, deque)
_MODULES_OWN = frozenset(vars(nn.Module()))
_HOOKS = _MODULES_OWN - {"_buffers", "_parameters"}
"""Attributes by which modules keep their hooks and submodules."""


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore the attributes of all modules, what is in them, and the buffers, on the way out.

    Hooks and submodules are left alone, which another thread may add. Of weights that
    ``torch.nn.utils.parametrize.cached`` keeps, nothing is seen inside.

    Args:
        model: The model that is run inside.
    """
    with ONE_AT_A_TIME:
        kept = [(part, _entries(part)) for part in (*_containers_of(model), parametrize._cache)]
        buffers = [(x, x._version, x.clone()) for x in model.buffers() if not x.is_inference()]
        parametrize._cache.clear()
        try:
            yield
        finally:
            for part, before in kept:
                _restore(part, before)
            for buffer, version, before in buffers:
                if buffer._version != version:
                    _overwrite(buffer, before)


@contextmanager
def without_tables(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Empty, for a while, the dictionaries of tensors that a model fills when they are asked for.

    A forward without a graph may have filled them, of the caller or in an evaluation before: the
    weights that they were made of would seem to be unused.

    Args:
        model: The model that is run inside.
        images: Its input, of which one shows whether it gives the same logits without them.
    """
    with ONE_AT_A_TIME:
        tables = [(table, _entries(table)) for table in _tables_of(model)]
        if tables and not _same_without(model, images[:1], [part for part, _ in tables]):
            tables = []
        for part, _ in tables:
            part.clear()
        try:
            yield
        finally:
            for part, before in tables:
                _restore(part, before)


def _tables_of(model: nn.Module) -> list[dict[Any, Tensor]]:
    """Return the dictionaries of tensors that modules hold, parameters and buffers left out."""
    return [
        value
        for module in model.modules()
        for name, value in module.__dict__.items()
        if isinstance(value, dict) and value and name not in _MODULES_OWN
        if all(isinstance(entry, Tensor) for entry in value.values())
    ]


def _same_without(model: nn.Module, image: Tensor, tables: list[dict[Any, Tensor]]) -> bool:
    """Say whether the model fills the tables anew if they are empty, with the same output."""
    with torch.inference_mode(False), torch.no_grad():
        with undisturbed(model):
            expected = logits_of(model(image.clone()), len(image))
        with undisturbed(model):
            for table in tables:
                table.clear()
            try:
                got = logits_of(model(image.clone()), len(image))
            except Exception:  # they are not made on demand
                return False
            return all(tables) and torch.allclose(got, expected)


def _containers_of(model: nn.Module) -> list[Any]:
    """Return the attributes of all modules, and every container in them, each once."""
    found: dict[int, Any] = {}
    pending: list[Any] = []
    for module in model.modules():
        attributes = module.__dict__
        found[id(attributes)] = attributes
        pending += [value for name, value in attributes.items() if name not in _HOOKS]
    while pending:
        part = pending.pop()
        if isinstance(part, _CONTAINERS) and id(part) not in found:
            found[id(part)] = part
            pending.extend(part.values() if isinstance(part, dict) else part)
    return list(found.values())


def _entries(part: Any) -> list[Any]:
    return list(part.items() if isinstance(part, dict) else part)


def _restore(part: Any, before: list[Any]) -> None:
    now = part.values() if isinstance(part, dict) else part
    then = [value for _, value in before] if isinstance(part, dict) else before
    if len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True)):
        part.clear()
        part.extend(before) if isinstance(part, (list, deque)) else part.update(before)


def _overwrite(buffer: Tensor, before: Tensor) -> None:
    with torch.no_grad():
        buffer.copy_(before)
