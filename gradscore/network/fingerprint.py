"""A quick look at a model, which tells that nothing changed since the last long one.

Nothing is read but identities, version counters, addresses and the values of small tensors.
"""

import operator
import types
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradscore.network.observation import is_own_hook

FEW = 4
"""Tensors of up to so many elements, such as gates, are told by their values as well: a change
through ``.data`` leaves no other trace."""

PLAIN = frozenset(
    {int, float, complex, bool, str, bytes, type(None)}
    | {torch.Size, torch.dtype, torch.device, torch.memory_format}
)
_PARTS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STANDARD = frozenset(vars(nn.Module()))


def _is_plain(value: Any) -> bool:
    """Say whether a value cannot change, such as a number, or sizes in a tuple."""
    kind = value.__class__
    return kind in PLAIN or (kind is tuple and all(map(_is_plain, value)))


def marks_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return what a change of a tensor in place changes."""
    try:
        version = -1 if tensor.is_inference() else tensor._version
        memory = tensor.data_ptr()
        if tensor.numel() <= FEW and tensor.device.type == "cpu":
            return version, memory, tensor.tolist()
    except RuntimeError:  # not every kind of tensor has memory of its own
        return (0, 0)
    return version, memory


class Same:
    """Equal to another only where both hold one and the same object, which is kept alive."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        """Say whether both hold the same object."""
        return isinstance(other, Same) and self.held is other.held

    __hash__ = None  # type: ignore[assignment]


def class_places(modules: Collection[nn.Module]) -> list[tuple[Mapping[str, Any], str]]:
    """Return where the code of modules finds what is in no instance: in classes and globals.

    Classes of torch itself are left out.
    """
    places: list[tuple[Mapping[str, Any], str]] = []
    classes = {base: None for kind in {type(m) for m in modules} for base in kind.__mro__}
    for kind in classes:
        if kind.__module__.partition(".")[0] in ("torch", "builtins"):
            continue
        places += [(kind.__dict__, name) for name in kind.__dict__]
        for value in kind.__dict__.values():
            if isinstance(value, types.FunctionType):
                around = value.__globals__
                places += [(around, name) for name in value.__code__.co_names if name in around]
    return places


class Fingerprint:
    """What a quick look at a model saw.

    Args:
        modules: The modules of a model.
        tell: Tells a value that is neither plain, a tensor nor a module from others.
    """

    def __init__(self, modules: Collection[nn.Module], tell: Callable[[Any], Any]) -> None:
        self._tell = tell
        # References keep plain values alive: an id that is taken stands for one object.
        self._plain: list[Any] = []
        self._modules = [weakref.ref(module) for module in modules]
        self._classes = class_places(modules)
        self._in_classes = [place[name] for place, name in self._classes]
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
                elif name not in _STANDARD:
                    self._special.append((reference, name))
            for tensor in tensors:
                if tensor is not None:
                    common = len(marks_of(tensor)) == 2 and not tensor.is_inference()
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
        seen: list[Any] = []
        extend = seen.extend
        for reference in self._modules:
            module = reference()
            attributes = module.__dict__
            seen.append(type(module))
            extend(map(id, attributes.values()))
            for name in _PARTS:
                if part := attributes[name]:
                    extend(map(id, part.values()))
            for name in _HOOKS:
                if part := attributes[name]:
                    extend([key for key, hook in part.items() if not is_own_hook(hook)])
        for reference in self._tensors:
            tensor = reference()
            extend((tensor._version, tensor.data_ptr()))
        extend([marks_of(reference()) for reference in self._others])
        extend([self._tell(getattr(module(), name)) for module, name in self._special])
        return seen
