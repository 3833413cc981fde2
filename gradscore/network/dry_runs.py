"""Forwards of which nothing remains in the model, and what remains of forwards before.

A model may keep what it makes: a table derived from its weights once for all forwards, its latest
features, a counter. Kept from one of our forwards, a derived table would hide the weights behind
it from the next, and the features would hold a whole graph. A table that an earlier forward kept
hides them likewise: their gradient is zero for autograd as well, though the logits depend on them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradscore.copies import SavedContainer, preserved_generators, tensor_tables
from gradscore.errors import ModelError
from gradscore.network.checks import wrap_forward_errors
from gradscore.network.facts import ONE_AT_A_TIME, Facts, facts_of
from gradscore.network.observation import force_eager, unobserved
from gradscore.network.snapshots import SavedHooks, snapshots_of
from gradscore.outputs import logits_of

Saved = tuple[Tensor, int, Tensor | None]
"""A tensor, its version counter, and a copy of it."""


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Put back on the way out what a forward changed in a model, or around it.

    That is: attributes of modules and what is in them, hooks, buffers, tensors that its code keeps
    outside of it, and the states of random generators. Parameters are all copied in the first
    forward of a model, and later those that it changed then. Of weights that
    ``torch.nn.utils.parametrize.cached`` keeps, nothing is seen inside.

    Args:
        model: The model that is run inside.

    Raises:
        ModelError: If the forward changed a parameter in place that it did not change before.
    """
    with ONE_AT_A_TIME, preserved_generators():
        facts = facts_of(model)
        parameters = _save_parameters(model, facts)
        snapshots = [*snapshots_of(model), SavedContainer(parametrize._cache), SavedHooks(model)]
        buffers = _save_buffers(model, facts)
        parametrize._cache.clear()
        try:
            yield
        finally:
            for snapshot in snapshots:
                snapshot.restore()
            _restore_buffers(buffers)
            late = _restore_parameters(model, facts, parameters)
        if late:
            raise ModelError(
                "Expected a forward that leaves parameters as they are, as it did before, got one "
                f"that changed one {list(late[0].shape)} in place; let it compute with a copy."
            )


def changes_parameters(model: nn.Module) -> bool:
    """Say whether forwards change parameters in place, as far as was seen."""
    return bool(facts_of(model).changed_parameters)


def _save_parameters(model: nn.Module, facts: Facts) -> list[Saved]:
    """Return parameters, with copies of those that a forward may change."""
    changed = facts.changed_parameters
    return [
        (x, x._version, x.detach().clone() if changed is None or id(x) in changed else None)
        for x in model.parameters()
        if not (x.is_inference() or x.is_meta)
    ]


def _restore_parameters(model: nn.Module, facts: Facts, parameters: list[Saved]) -> list[Tensor]:
    """Restore parameters, note which were changed, and return those that cannot be restored."""
    if facts.changed_parameters is None:
        facts.changed_parameters = {
            id(module.weight): module.weight
            for module in model.modules()
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None
        }
    late = []
    for parameter, version, copy in parameters:
        changed = parameter._version != version
        if copy is None:
            late += [parameter] if changed else []
        elif changed or not _same(parameter, copy):  # a change through .data has no version
            facts.changed_parameters[id(parameter)] = parameter
            with torch.no_grad():
                parameter.copy_(copy)
    return late


def _same(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x, y) or torch.equal(x.nan_to_num(), y.nan_to_num())


def _save_buffers(model: nn.Module, facts: Facts) -> dict[int, Saved]:
    """Return the buffers by identity, copied anew only where one has changed."""
    copies = {}
    for buffer in model.buffers():
        if not buffer.is_inference():
            key, version = id(buffer), buffer._version
            before = facts.buffer_copies.get(key)
            current = before is not None and before[0] is buffer and before[1] == version
            copies[key] = before if current else (buffer, version, buffer.detach().clone())
    facts.buffer_copies = copies
    return copies


def _restore_buffers(buffers: dict[int, Saved]) -> None:
    for key, (buffer, version, copy) in buffers.items():
        if buffer._version != version:
            with torch.no_grad():
                buffer.copy_(copy)
            buffers[key] = (buffer, buffer._version, copy)


@contextmanager
def dry_run(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Let a forward leave no trace, whatever mode the caller is in, and no observer see it.

    The model may write into its input, so it gets a copy; and what it keeps, it loses again.

    Args:
        model: The model; left as it is.
        images: Its input; left as it is.

    Yields:
        A copy of it; inside, no graph is recorded, and inference mode is off.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        preserve_state(model),
        force_eager(),
        unobserved(),
    ):
        yield images.clone()


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
        tables = [SavedContainer(table) for table in tensor_tables(model)]
        if tables and not _same_without(model, images[:1], [table.part for table in tables]):
            tables = []
        for table in tables:
            table.part.clear()
        try:
            yield
        finally:
            for table in tables:
                table.restore()


def _same_without(model: nn.Module, image: Tensor, tables: list[dict[Any, Tensor]]) -> bool:
    """Say whether the model fills the tables anew if they are empty, with the same output."""
    with dry_run(model, image) as own:
        expected = logits_of(model(own), len(own))
    with dry_run(model, image) as own:
        for table in tables:
            table.clear()
        try:
            got = logits_of(model(own), len(own))
        except Exception:  # they are not made on demand
            return False
        return all(tables) and torch.allclose(got, expected)


def kept_tensors_of(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the floating tensors that a model keeps outside of its parameters and buffers.

    Args:
        model: The model; left as it is.
        images: Its input, shape ``[batch, ...]``; one of them is run.
    """
    with (
        _casting_anew(),
        without_caches(model, images),
        dry_run(model, images[:1]) as own,
        _Origins(model, own) as origins,
    ):
        try:
            model(own)
        except Exception:  # it takes another number of images
            with wrap_forward_errors(model, images):
                model(images.clone())
    return origins.found


@contextmanager
def _casting_anew() -> Iterator[None]:
    """Let autocast not use what it has cast before, which would be found."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _Origins(TorchDispatchMode):
    """Tell tensors by the memory that they are in.

    Attributes:
        found: Those whose memory was neither the model's, nor the input's, nor made inside.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self._made: list[Tensor] = []
        self._known: set[int] = set()
        for tensor in (*model.parameters(), *model.buffers(), images):
            self._note(tensor)

    def _note(self, tensor: Tensor) -> None:
        self._made.append(tensor)  # kept, so that its memory is not given to another
        self._known.add(_memory(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one call and note where its tensors are from."""
        kwargs = kwargs or {}
        # What was written out as numbers in the forward is lifted into a tensor.
        if not func.name().startswith("aten::lift"):
            for tensor in tree_leaves((args, kwargs)):
                if _is_value(tensor) and _memory(tensor) not in self._known:
                    self.found.append(tensor)
                    self._note(tensor)
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return result


def _is_value(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and quantised tensors have another kind
        return id(tensor)
