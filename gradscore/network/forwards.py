"""How a model is run: as its code is written, seen by observers, and leaving no trace.

A compiled module calls no function that could be seen. Activation checkpointing keeps no results
and runs its block again in the backward, where no recorder listens; kept results give the same
gradients.

A model may keep what it makes: a table derived from its weights once for all forwards, its latest
features, a counter. Kept from one of our forwards, a derived table would hide the weights behind
it from the next, and the features would hold a whole graph.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize
from torch.utils.checkpoint import CheckpointFunction

from gradscore.copies import SavedContainer, eager_stance, preserved_generators
from gradscore.errors import ModelError
from gradscore.network.facts import ONE_AT_A_TIME, Facts, facts_of, listing_of
from gradscore.network.listing import Listing
from gradscore.network.snapshots import SavedHooks, snapshots_of

Observer = Callable[[str, tuple[Any, ...], Any], Any]
"""Gets a module's name, the positional arguments of a call, and its output."""

Saved = tuple[Tensor, int, Tensor | None]
"""A tensor, its version counter, and a copy of it."""


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
        with eager_stance():
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
        facts, listing = facts_of(model), listing_of(model)
        modules = listing.modules.values()
        parameters = _save_parameters(listing, facts)
        snapshots = [
            *snapshots_of(listing),
            SavedContainer(parametrize._cache),
            SavedHooks(modules),
        ]
        buffers = _save_buffers(listing, facts)
        parametrize._cache.clear()
        try:
            yield
        finally:
            for snapshot in snapshots:
                snapshot.restore()
            _restore_buffers(buffers)
            late = _restore_parameters(modules, facts, parameters)
        if late:
            raise ModelError(
                "Expected a forward that leaves parameters as they are, as it did before, got one "
                f"that changed one {list(late[0].shape)} in place; let it compute with a copy."
            )


def changes_parameters(model: nn.Module) -> bool:
    """Say whether forwards change parameters in place, as far as was seen."""
    return bool(facts_of(model).changed_parameters)


def expect_changes(model: nn.Module, copy: nn.Module) -> None:
    """Let forwards of a copy keep those parameters that forwards of the model were seen to change.

    Otherwise the first of them keeps all, as much memory as the copy itself.

    Args:
        model: The model.
        copy: Its copy, before its first forward.
    """
    changed = facts_of(model).changed_parameters
    if changed is not None:
        pairs = zip(model.parameters(), copy.parameters(), strict=True)
        facts_of(copy).changed_parameters = {id(y): y for x, y in pairs if id(x) in changed}


def _save_parameters(listing: Listing, facts: Facts) -> list[Saved]:
    """Return parameters, with copies of those that a forward may change."""
    changed = facts.changed_parameters
    return [
        (x, x._version, x.detach().clone() if changed is None or id(x) in changed else None)
        for x in listing.parameters.values()
        if not (x.is_inference() or x.is_meta)
    ]


def _restore_parameters(
    modules: Iterable[nn.Module], facts: Facts, parameters: list[Saved]
) -> list[Tensor]:
    """Restore parameters, note which were changed, and return those that cannot be restored."""
    if facts.changed_parameters is None:
        facts.changed_parameters = {
            id(module.weight): module.weight
            for module in modules
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


def _save_buffers(listing: Listing, facts: Facts) -> dict[int, Saved]:
    """Return the buffers by identity, copied anew only where one has changed."""
    copies = {}
    for buffer in listing.buffers:
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
