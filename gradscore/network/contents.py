"""What a model is made of, as far as it shows from the outside.

At length, as contents that can be compared, kept and come back to; or as a fingerprint, which
shows at a quick look that nothing changed since the last long one. Weights are not read, but for
those of a few elements: identities, version counters and addresses stand for them.
"""

import itertools
import operator
import types
import weakref
from collections import OrderedDict
from collections.abc import Collection, Container, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradscore.copies import CONTAINERS, MODULES_OWN
from gradscore.network.places import can_change, inside_of, places_of

CLASSES = "classes"
"""Entry of the surroundings for what a model's classes and the modules of their code hold."""

FEW = 4
"""Tensors of up to so many elements, such as gates, are compared by value, too: a change through
``.data`` leaves no other trace."""

MOST_ENTRIES = 64
"""Of larger containers that a module keeps, entries are compared without what is in them."""

MOST_PLAIN = 4096
"""Still larger ones are compared by identity and length alone, and so are larger arrays."""

DEEPEST = 32
"""What lies deeper in objects and containers is compared by identity: chains have no end."""

Contents = Sequence[dict[str, Any]]
"""What each module of a model holds, by name, in the order of a walk through the model."""

Place = tuple[int, str]
"""Where something is in the contents: number of the module, and name in it."""

PLAIN = frozenset(
    {int, float, complex, bool, str, bytes, type(None)}
    | {torch.Size, torch.dtype, torch.device, torch.memory_format}
)
_PARTS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CONTAINERS = (*CONTAINERS, tuple, frozenset, bytearray)
_EMPTY = frozenset({dict, OrderedDict, set})
_WITHOUT_SETTINGS = (type, types.ModuleType, torch.Generator)
_GLOBAL_HOOKS = tuple(
    getattr(nn.modules.module, f"_global_{kind}hooks")
    for kind in ("forward_", "forward_pre_", "backward_", "backward_pre_")
)
"""Hooks of all modules there are."""

_WITHOUT_MEMORY = (0, 0)

_SERIALS: dict[int, tuple[weakref.ref, int]] = {}
_NUMBERS = itertools.count()


def is_own_hook(hook: Any) -> bool:
    """Say whether a hook of a module is one of this package."""
    return (getattr(hook, "__module__", None) or "").startswith("gradscore.")


def _is_plain(value: Any) -> bool:
    """Say whether a value cannot change, such as a number, or sizes in a tuple."""
    kind = value.__class__
    return kind in PLAIN or (kind is tuple and all(map(_is_plain, value)))


def _marks_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return what a change of a tensor in place changes."""
    try:
        version = -1 if tensor.is_inference() else tensor._version
        memory = tensor.data_ptr()
        if tensor.numel() <= FEW and tensor.device.type == "cpu":
            return version, memory, tensor.tolist()
    except (RuntimeError, ValueError):  # not every kind of tensor has memory of its own
        return _WITHOUT_MEMORY
    return version, memory


class _Identity:
    """Equal to another only where both hold one and the same object, which is kept alive."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        """Say whether both hold the same object."""
        return isinstance(other, _Identity) and self.held is other.held

    __hash__ = None  # type: ignore[assignment]


class Fingerprint:
    """What a quick look at a model saw, and at what surrounds it.

    Args:
        modules: The modules of a model, none of them scripted.
    """

    def __init__(self, modules: Collection[nn.Module]) -> None:
        # References keep plain values alive: an id that is taken stands for one object.
        self._plain: list[Any] = []
        self._modules = [weakref.ref(module) for module in modules]
        self._classes = places_of(modules)
        self._in_classes = [place[name] for place, name in self._classes]
        pairs = zip(self._in_classes, self._classes, strict=True)
        self._changing = [value for value, (_, name) in pairs if can_change(value, name)]
        self._tensors: list[weakref.ref] = []
        self._others: list[weakref.ref] = []
        self._special: list[tuple[weakref.ref, str]] = []
        for module, reference in zip(modules, self._modules, strict=True):
            tensors = [*module._parameters.values(), *module._buffers.values()]
            for name, value in module.__dict__.items():
                if _is_plain(value):
                    self._plain.append(value)
                elif isinstance(value, Tensor):
                    tensors.append(value)
                elif name not in MODULES_OWN:
                    self._special.append((reference, name))
            for tensor in tensors:
                if tensor is not None:
                    marks = _marks_of(tensor)
                    common = len(marks) == 2 and marks[0] >= 0 and marks != _WITHOUT_MEMORY
                    kind = self._tensors if common else self._others
                    kind.append(weakref.ref(tensor))
        self._seen = self._look()

    def holds(self) -> bool:
        """Say whether a look at the model sees the same as the first."""
        try:
            return self._classes_hold() and self._look() == self._seen
        except (AttributeError, KeyError, RuntimeError, TypeError):  # something is gone
            return False

    def _classes_hold(self) -> bool:
        now = [place.get(name) for place, name in self._classes]
        return all(map(operator.is_, now, self._in_classes))

    def _look(self) -> list[Any]:
        seen: list[Any] = [_surroundings()]
        extend = seen.extend
        for reference in self._modules:
            module = reference()
            attributes = module.__dict__
            seen.append(type(module))
            extend(attributes)
            extend(map(id, attributes.values()))
            for name in _PARTS:
                if part := attributes[name]:
                    extend(part)
                    extend(map(id, part.values()))
            for name in _HOOKS:
                if part := attributes[name]:
                    extend([key for key, hook in part.items() if not is_own_hook(hook)])
        for reference in self._tensors:
            tensor = reference()
            extend((tensor._version, tensor.data_ptr()))
        extend([_marks_of(reference()) for reference in self._others])
        for module, name in self._special:
            seen.append(_described(getattr(module(), name), [], set()))
        for value in self._changing:
            seen.append(_described(value, [], set()))
        return seen


def contents_of(model: nn.Module, without: Container[Place] = ()) -> Contents:
    """Return what a model is made of, as far as it shows from the outside.

    Args:
        model: The model.
        without: What to leave out.
    """
    return walk(model, without)[0]


def walk(model: nn.Module, without: Container[Place]) -> tuple[Contents, list[nn.Module]]:
    """Return the contents of a model and its modules; arguments as for :func:`contents_of`."""
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
        contents[0][CLASSES] = [_described_place(place[n], n) for place, n in places_of(modules)]
    return contents, modules


def _described_place(value: Any, name: str) -> tuple[Any, ...]:
    inside = _described(value, [], set()) if can_change(value, name) else None
    return name, _Identity(value), inside


def _surroundings() -> dict[str, Any]:
    """Return what a forward depends on besides the model."""
    autocasts = {
        f"autocast {device}": torch.get_autocast_dtype(device)
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    }
    hooks = [key for some in _GLOBAL_HOOKS for key, hook in some.items() if not is_own_hook(hook)]
    return {"default": torch.get_default_dtype(), "hooks": hooks, **autocasts}


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
                entries[key] = tensor if tensor is None else _described_tensor(tensor)
        elif name == "_modules":  # all of them, however many
            entries[name] = [(key, _described(part, pending, seen)) for key, part in value.items()]
        elif "hooks" in name and isinstance(value, dict):
            hooks = tuple(key for key, hook in value.items() if not is_own_hook(hook))
            if hooks:
                entries[name] = hooks
        else:
            entries[name] = _described(value, pending, seen)
    if isinstance(module, torch.jit.ScriptModule):
        for key, tensor in (*module.named_parameters(), *module.named_buffers()):
            entries[key] = _described_tensor(tensor)
    return entries


def _described(value: Any, pending: list[nn.Module], seen: set[int], depth: int = 0) -> Any:
    """Return what sets a value apart from others, and from itself after a change."""
    if value.__class__ in PLAIN:
        return value
    if isinstance(value, Tensor):
        return _described_tensor(value)
    if isinstance(value, _CONTAINERS):
        if len(value) > MOST_ENTRIES or depth > DEEPEST:
            return id(value), len(value), _plainly_described(value)
        if not isinstance(value, tuple):  # a dictionary's pairs come and go
            if id(value) in seen:
                return id(value), len(value)
            seen.add(id(value))
        entries = value.items() if isinstance(value, dict) else value
        return tuple([_described(entry, pending, seen, depth + 1) for entry in entries])
    if id(value) in seen:
        return _serial(value)
    seen.add(id(value))
    if isinstance(value, nn.Module):
        pending.append(value)
        return _serial(value)
    if isinstance(value, _WITHOUT_SETTINGS) or depth > DEEPEST:
        return _serial(value)
    if hasattr(value, "tobytes") and getattr(value, "nbytes", MOST_PLAIN + 1) <= MOST_PLAIN:
        return _serial(value), value.tobytes()
    inside = [_described(part, pending, seen, depth + 1) for part in inside_of(value)]
    return _serial(value), *inside


def _plainly_described(container: Collection[Any]) -> Any:
    """Return the entries of a large container, without what is in them."""
    if len(container) > MOST_PLAIN:
        return None
    entries = container.values() if isinstance(container, dict) else container
    return [x if x.__class__ in PLAIN else id(x) for x in entries]


def _described_tensor(tensor: Tensor) -> tuple[Any, ...]:
    """Return what sets a tensor apart from others, and from itself after a change."""
    return _serial(tensor), *_marks_of(tensor)


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
