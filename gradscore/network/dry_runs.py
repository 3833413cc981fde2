"""Forwards of which nothing remains in the model, whatever it keeps between them.

A model may keep what it makes: a table derived from its weights once for all forwards, its latest
features, a counter. Kept from one of our forwards, a derived table would hide the weights behind
it from the next, and the features would hold a whole graph.
"""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gradscore.errors import ModelError
from gradscore.network.facts import ONE_AT_A_TIME
from gradscore.network.observation import force_eager
from gradscore.network.snapshots import Container, is_own_hook, snapshots_of
from gradscore.outputs import logits_of

_MODULES_OWN = frozenset(vars(nn.Module()))
_HOOKS = tuple(name for name in vars(nn.Module()) if "hooks" in name)

_WRITTEN: WeakKeyDictionary[nn.Module, dict[int, Tensor]] = WeakKeyDictionary()
"""Parameters that a forward was seen to change, by model and identity."""

_COPIES: WeakKeyDictionary[nn.Module, dict[int, tuple[Tensor, int, Tensor]]] = WeakKeyDictionary()
"""Buffers that were copied before, with the version of which the copy is."""


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Put back on the way out what a forward changed in a model, or around it.

    That is: attributes of modules and what is in them, hooks, buffers, tensors that its code keeps
    elsewhere, and the states of random generators. Parameters are all copied in the first forward
    of a model, and later those that it changed then. Of weights that
    ``torch.nn.utils.parametrize.cached`` keeps, nothing is seen inside.

    Args:
        model: The model that is run inside.

    Raises:
        ModelError: If the forward changed a parameter in place that it did not change before.
    """
    with ONE_AT_A_TIME:
        parameters = _copied_parameters(model)
        snapshots = [*snapshots_of(model), Container(parametrize._cache, False)]
        hooks = {id(part): set(part) for part in _hooks_of(model)}
        buffers = _copied_buffers(model)
        generators = _generator_states()
        parametrize._cache.clear()
        try:
            yield
        finally:
            for snapshot in snapshots:
                snapshot.restore()
            _remove_hooks(model, hooks)
            for key, (buffer, version, copy) in buffers.items():
                if buffer._version != version:
                    with torch.no_grad():
                        buffer.copy_(copy)
                    buffers[key] = (buffer, buffer._version, copy)
            for restore, state in generators:
                restore(state)
            late = _put_back(model, parameters)
        if late:
            raise ModelError(
                "Expected a forward that leaves parameters as they are, as it did before, got one "
                f"that changed one {list(late[0].shape)} in place; let it compute with a copy."
            )


def changes_parameters(model: nn.Module) -> bool:
    """Say whether forwards change parameters in place, as far as was seen."""
    return bool(_WRITTEN.get(model))


Copied = list[tuple[Tensor, int, Tensor | None]]


def _copied_parameters(model: nn.Module) -> Copied:
    """Return parameters with their versions, and copies of those that a forward may change."""
    written = _WRITTEN.get(model)
    return [
        (x, x._version, x.detach().clone() if written is None or id(x) in written else None)
        for x in model.parameters()
        if not (x.is_inference() or x.is_meta)
    ]


def _put_back(model: nn.Module, parameters: Copied) -> list[Tensor]:
    """Restore parameters, note which were changed, and return those that cannot be restored."""
    first, late = model not in _WRITTEN, []
    if first:
        _WRITTEN[model] = {
            id(module.weight): module.weight
            for module in model.modules()
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None
        }
    for parameter, version, copy in parameters:
        changed = parameter._version != version
        if copy is None:
            late += [parameter] if changed else []
        elif changed or not _same(parameter, copy):  # a change through .data has no version
            _WRITTEN[model][id(parameter)] = parameter
            with torch.no_grad():
                parameter.copy_(copy)
    return late


def _same(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x, y) or torch.equal(x.nan_to_num(), y.nan_to_num())


def _copied_buffers(model: nn.Module) -> dict[int, tuple[Tensor, int, Tensor]]:
    """Return the buffers with their versions and copies, made anew only where one has changed."""
    known = _COPIES.get(model, {})
    copies = {}
    for buffer in model.buffers():
        if not buffer.is_inference():
            key, version = id(buffer), buffer._version
            before = known.get(key)
            current = before is not None and before[0] is buffer and before[1] == version
            copies[key] = before if current else (buffer, version, buffer.detach().clone())
    _COPIES[model] = copies
    return copies


def _hooks_of(model: nn.Module) -> Iterator[dict[int, Any]]:
    for module in model.modules():
        attributes = module.__dict__
        yield from (attributes[name] for name in _HOOKS if attributes.get(name))


def _remove_hooks(model: nn.Module, known: dict[int, set[int]]) -> None:
    """Remove hooks that a forward registered; those of this package another thread may add."""
    for part in _hooks_of(model):
        before = known.get(id(part), ())
        for key, hook in list(part.items()):
            if key not in before and not is_own_hook(hook):
                del part[key]


def _generator_states() -> list[tuple[Callable[[Any], Any], Any]]:
    """Return the states of random generators, each with what restores it."""
    states = [
        (torch.set_rng_state, torch.get_rng_state()),
        (random.setstate, random.getstate()),
    ]
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        states.append((numpy.random.set_state, numpy.random.get_state()))
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return states


@contextmanager
def without_caches(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Empty, for a while, the dictionaries of tensors that a model fills when they are asked for.

    A forward without a graph may have filled them, of the caller or in an evaluation before: the
    weights that they were made of would seem to be unused.

    Args:
        model: The model that is run inside.
        images: Its input, of which one shows whether it gives the same logits without them.
    """
    with ONE_AT_A_TIME:
        tables = [Container(table, False) for table in _tables_of(model)]
        if tables and not _same_without(model, images[:1], [table.part for table in tables]):
            tables = []
        for table in tables:
            table.part.clear()
        try:
            yield
        finally:
            for table in tables:
                table.restore()


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
        with preserve_state(model):
            expected = logits_of(model(image.clone()), len(image))
        with preserve_state(model):
            for table in tables:
                table.clear()
            try:
                got = logits_of(model(image.clone()), len(image))
            except Exception:  # they are not made on demand
                return False
            return all(tables) and torch.allclose(got, expected)


Structure = tuple[tuple[str, int], ...]
"""Names and identities of a model's modules and parameters."""


@contextmanager
def dry_run(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Let a forward leave no trace, whatever mode the caller is in.

    The model may write into its input, so it gets a copy; and what it keeps, it loses again.

    Args:
        model: The model; left as it is.
        images: Its input; left as it is.

    Yields:
        A copy of it; inside, no graph is recorded, and inference mode is off.
    """
    with torch.inference_mode(False), torch.no_grad(), preserve_state(model), force_eager():
        yield images.clone()


def structure_of(model: nn.Module) -> Structure:
    """Return what a model is made of, to tell later whether a part of it was replaced.

    Returns:
        Names and identities of its modules and parameters.
    """
    return tuple(
        (name, id(part)) for name, part in (*model.named_modules(), *model.named_parameters())
    )
