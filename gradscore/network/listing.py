"""The parts of a model by one walk, for all who ask for them during a call.

A walk through a network of many small layers takes as long as some of its layers. What a walk
finds holds for as long as the model's fingerprint does: then its outline, which keeps no part of
the model alive, gives the same listing at once.
"""

import weakref
from collections.abc import Container
from typing import Any

from torch import Tensor, nn

from gradscore.copies import MODULES_OWN
from gradscore.network.contents import PLAIN

_WALKS = tuple(
    (name, getattr(nn.Module, name))
    for name in (
        *("modules", "named_modules", "parameters", "named_parameters"),
        *("buffers", "named_buffers", "_named_members"),
    )
)
_NOTHING_KEPT = PLAIN | {Tensor, nn.Parameter}


class Listing:
    """Modules, parameters and buffers of a model, and where its modules keep anything else.

    Attributes:
        modules: Every module by its name, each once.
        parameters: Every parameter by its name, each once.
        buffers: Every buffer, each once.
        kept: Attributes that hold neither a plain value nor a tensor, nor are every module's own:
            the module's attributes, and the name.
    """

    __slots__ = ("buffers", "kept", "modules", "parameters")

    def __init__(
        self,
        modules: dict[str, nn.Module],
        parameters: dict[str, Tensor],
        buffers: list[Tensor],
        kept: list[tuple[dict[str, Any], str]],
    ) -> None:
        self.modules, self.parameters = modules, parameters
        self.buffers, self.kept = buffers, kept

    @classmethod
    def of(cls, model: nn.Module) -> "Listing":
        """Return the listing of a model as it is now."""
        modules = dict(model.named_modules())
        kept = [
            (vars(module), name)
            for module in modules.values()
            for name, value in vars(module).items()
            if value.__class__ not in _NOTHING_KEPT and name not in MODULES_OWN
        ]
        return cls(modules, dict(model.named_parameters()), list(model.buffers()), kept)

    def constants(self, besides: Container[int]) -> list[Tensor]:
        """Return the registered tensors of all modules but those of some identities."""
        return [
            tensor
            for module in self.modules.values()
            for part in (module._parameters, module._buffers)
            if part
            for tensor in part.values()
            if tensor is not None and id(tensor) not in besides
        ]

    @property
    def by_plain_walks(self) -> bool:
        """Whether no module has a walk of its own, which may give something else the next time."""
        return all(
            getattr(getattr(module, name), "__func__", None) is walk
            for module in self.modules.values()
            for name, walk in _WALKS
        )


class Outline:
    """What gives a listing again for as long as the model's fingerprint holds.

    Args:
        listing: The listing, by plain walks.
    """

    def __init__(self, listing: Listing) -> None:
        owners = {id(vars(module)): module for module in listing.modules.values()}
        self._names = tuple(listing.modules), tuple(listing.parameters)
        self._modules = [weakref.ref(module) for module in listing.modules.values()]
        self._parameters = [weakref.ref(parameter) for parameter in listing.parameters.values()]
        self._buffers = [weakref.ref(buffer) for buffer in listing.buffers]
        self._kept = [(weakref.ref(owners[id(around)]), name) for around, name in listing.kept]

    def listing(self) -> Listing:
        """Return the listing of the model, which must not have changed."""
        modules, parameters = self._names
        return Listing(
            dict(zip(modules, [reference() for reference in self._modules], strict=True)),
            dict(zip(parameters, [reference() for reference in self._parameters], strict=True)),
            [reference() for reference in self._buffers],
            [(reference().__dict__, name) for reference, name in self._kept],
        )
