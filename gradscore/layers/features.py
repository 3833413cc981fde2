"""The input of a classifier's last layer, observed while the model runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradscore.errors import ModelError
from gradscore.layers.head import LINEAR_LIKE, Head, is_product
from gradscore.network import check_unhooked, force_eager, observe


@dataclass
class Observation:
    """The input of the last layer in the latest forward, ``[batch, in_features]``.

    Attributes:
        name: Name of the last layer.
        module: The layer.
    """

    name: str
    module: nn.Module
    _input: Tensor | None = None
    _output: Tensor | None = None
    _plain: bool = False

    @property
    def features(self) -> Tensor:
        """Return the features, detached, in the type that the model computed them in.

        Raises:
            ModelError: If no forward has passed through the last layer.
        """
        if self._input is None:
            raise ModelError("Expected a forward through the last layer, there was none.")
        return self._input.flatten(1)

    def note(self, x: Tensor, output: Tensor) -> None:
        """Keep what entered and what left the layer."""
        # Copies, for the model may write into either. And unseen by a recorder of the forward,
        # which would take them for the model's own.
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self._input, self._output = x.detach().clone(), output.detach().clone()
        self._plain = self._computes_as_its_class()

    def explains(self, logits: Tensor) -> bool:
        """Say whether ``logits [batch, classes]`` of the latest forward are ``W x + b``.

        The layer was proved to be ``W x + b``, and the logits to be its output. What follows it
        may only show for some images, so that each batch of logits has to be its output bit for
        bit. Only a layer with a forward or hooks of its own is multiplied again, in rows that
        are finite.
        """
        logits, x, output = logits.detach(), self.features, self._output.flatten(1)
        if output.shape != logits.shape:
            return False
        if not torch.allclose(output.to(logits.dtype), logits, rtol=0, atol=0, equal_nan=True):
            return False
        if self._plain:
            return True
        finite = logits.isfinite().all(dim=1) & x.isfinite().all(dim=1)
        return is_product(self.module, x[finite], self.module.weight, logits[finite])

    def _computes_as_its_class(self) -> bool:
        module = self.module
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        everywhere = nn.modules.module._global_forward_hooks
        only_ours = hooks == 1 and not everywhere
        return type(module) in LINEAR_LIKE and "forward" not in vars(module) and only_ours

    def check(self, logits: Tensor) -> None:
        """Refuse logits of the latest forward that are not ``W x + b``.

        Raises:
            ModelError: If the layer does not explain them.
        """
        if not self.explains(logits):
            raise ModelError(
                f"Expected the logits to be the output of layer {self.name!r} for every image, as "
                "they are for the first, got others: something follows it that shows for some."
            )


@contextmanager
def observe_features(model: nn.Module, head: Head) -> Iterator[Observation]:
    """Observe the last layer's input while the context is open, by one hook on that layer.

    Forwards that only find something out about the model are not observed.

    >>> import torch
    >>> from gradscore.layers.head import find_head
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    >>> images = torch.ones(2, 1, 2, 2)
    >>> with observe_features(model, find_head(model, images)) as observed:
    ...     logits = model(images)
    >>> observed.features.shape
    torch.Size([2, 4])

    Args:
        model: The classifier whose head it is.
        head: What :func:`find_head` found.

    Yields:
        An object whose ``features`` are those of the latest forward, ``[batch, in_features]``.

    Raises:
        ModelError: If the head has no closed form, and so no features; the reason is given. If
            there is a hook on the gradient of its weight.
    """
    if not head.closed_form or head.module is None:
        raise ModelError(f"The last layer has no features to observe: {head.reason}.")
    observation = Observation(head.module, model.get_submodule(head.module))
    check_unhooked(head.weights[0], observation.module.weight)

    def keep(name: str, args: tuple, output: Any) -> None:
        observation.note(args[0], output)

    # A compiled forward may call no hook.
    with force_eager(), observe({head.module: observation.module}, keep):
        yield observation
