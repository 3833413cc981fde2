"""A model run so that nothing remains of it: on a deep copy, or on itself and put back."""

import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


@contextmanager
def plainly(image: Tensor) -> Iterator[None]:
    """Record graphs, run what is compiled as it was written, and leave random numbers alone."""
    numpy = sys.modules.get("numpy")
    draws, others = random.getstate(), numpy and numpy.random.get_state()
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else None
    cached, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng([image.device] if image.is_cuda else []),
            eager or nullcontext(),
        ):
            yield
    finally:
        parametrize._cache_enabled = cached
        random.setstate(draws)
        if numpy is not None:
            numpy.random.set_state(others)


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy, or the model itself where none can be made.

    None can of models that keep a tensor with its graph, a lock or a generator.
    """
    try:
        with torch.inference_mode(False), torch.no_grad():  # a scripted module copies as it runs
            copy = deepcopy(model)
        gradient_leaves(model, copy)
    except Exception:  # whatever a model's own way of copying raises
        return model
    return copy


def gradient_leaves(model: nn.Module, copy: nn.Module) -> dict[int, list[Tensor]]:
    """Return, by the identity of each parameter, the leaves that get its gradient.

    These are those of its names in the copy, and the parameter itself: a function that the model
    keeps may hold the model, and not its copy.
    """
    own = dict(copy.named_parameters(remove_duplicate=False))
    leaves: dict[int, list[Tensor]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        of_parameter = leaves.setdefault(id(parameter), [parameter])
        if not any(own[name] is leaf for leaf in of_parameter):
            of_parameter.append(own[name])
    return leaves


@contextmanager
def as_found(model: nn.Module, *, values: bool) -> Iterator[None]:
    """Give back on the way out what a forward and a backward may change in a model.

    Args:
        model: The model itself; of its copies nothing remains.
        values: Whether the values of parameters and buffers are to be kept, too.
    """
    parts = [
        (part, dict(part) if isinstance(part, dict) else list(part)) for part in _containers(model)
    ]
    leaves = [x for x in model.parameters() if x.is_leaf and not x.is_inference()]
    flags = [(x, x.requires_grad, x.grad) for x in leaves]
    tensors = [*model.parameters(), *model.buffers()] if values else []
    kept = [(x, x._version, x.detach().clone()) for x in tensors if not x.is_inference()]
    try:
        yield
    finally:
        for part, before in parts:
            if not _same(part, before):
                part.clear()
                part.update(before) if isinstance(part, (dict, set)) else part.extend(before)
        for parameter, required, gradient in flags:
            parameter.requires_grad_(required)
            parameter.grad = gradient
        for tensor, version, before in kept:
            if tensor._version != version:
                with torch.no_grad():
                    tensor.copy_(before)


def _containers(model: nn.Module) -> list[Any]:
    """Return the attributes of all modules, and the containers in them, each once."""
    found: dict[int, Any] = {}
    pending: list[Any] = [vars(module) for module in model.modules()]
    while pending:
        part = pending.pop()
        if isinstance(part, (dict, list, set, deque)) and id(part) not in found:
            found[id(part)] = part
            pending.extend(part.values() if isinstance(part, dict) else part)
    return list(found.values())


def _same(part: Any, before: Any) -> bool:
    """Say whether a container still holds the very objects that it held before."""
    now, then = (
        [*entries, *entries.values()] if isinstance(entries, dict) else list(entries)
        for entries in (part, before)
    )
    return len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))
