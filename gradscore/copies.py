"""A model run so that nothing remains: on a deep copy, or on itself with all put back."""

import operator
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

CONTAINERS = (dict, list, set, deque)
MODULES_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


@contextmanager
def plainly() -> Iterator[None]:
    """Record graphs, run what is compiled as it was written, and leave random numbers alone."""
    cached, parametrize._cache_enabled = parametrize._cache_enabled, 0
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            preserved_generators(),
            eager_stance(),
        ):
            yield
    finally:
        parametrize._cache_enabled = cached


def eager_stance() -> AbstractContextManager:
    """Run what is compiled as it was written.

    Where nothing was compiled dynamo is not loaded, and loading it takes seconds.
    """
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Put back the states of random generators: Python's, NumPy's, and torch's on each device."""
    states: list[tuple[Callable[[Any], Any], Any]] = [
        (torch.set_rng_state, torch.get_rng_state()),
        (random.setstate, random.getstate()),
    ]
    if numpy := sys.modules.get("numpy"):
        states.append((numpy.random.set_state, numpy.random.get_state()))
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    try:
        yield
    finally:
        for restore, state in states:
            restore(state)


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
    containers = [SavedContainer(part) for part in _containers(model)]
    leaves = [x for x in model.parameters() if x.is_leaf and not x.is_inference()]
    flags = [(x, x.requires_grad, x.grad) for x in leaves]
    tensors = [*model.parameters(), *model.buffers()] if values else []
    kept = [(x, x._version, x.detach().clone()) for x in tensors if not x.is_inference()]
    try:
        yield
    finally:
        for container in containers:
            container.restore()
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
        if isinstance(part, CONTAINERS) and id(part) not in found:
            found[id(part)] = part
            pending.extend(part.values() if isinstance(part, dict) else part)
    return list(found.values())


class SavedContainer:
    """A dictionary, list, set or deque, whose entries are put back.

    Args:
        part: The container.
        tensors_only: Whether it is put back only where it holds tensors now.
    """

    def __init__(self, part: Any, *, tensors_only: bool = False) -> None:
        self.part, self.tensors_only = part, tensors_only
        self._before = self._entries()

    def _entries(self) -> list[Any]:
        part = self.part
        return [*part, *part.values()] if isinstance(part, dict) else list(part)

    def restore(self) -> None:
        """Put back what was there, if it is something else now."""
        part, before, now = self.part, self._before, self._entries()
        if len(now) == len(before) and all(map(operator.is_, now, before)):
            return
        if self.tensors_only and not any(isinstance(entry, Tensor) for entry in now):
            return
        part.clear()
        if isinstance(part, dict):
            half = len(before) // 2
            part.update(zip(before[:half], before[half:], strict=True))
        else:
            part.update(before) if isinstance(part, set) else part.extend(before)


def tensor_tables(model: nn.Module) -> list[dict[Any, Tensor]]:
    """Return the dictionaries of tensors that modules keep beside parameters and buffers."""
    return [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in MODULES_OWN and is_tensor_table(value)
    ]


def is_tensor_table(value: Any) -> bool:
    """Say whether a value is a dictionary that holds tensors and nothing else."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(entry, Tensor) for entry in value.values())
    )
