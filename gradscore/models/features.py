"""The input of a classifier's last layer, observed while the model runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gradscore.errors import ModelError
from gradscore.models.head import Head, is_product


@dataclass
class Observation:
    """The input of the last layer in the latest forward, ``[batch, in_features]``.

    Attributes:
        name: Name of the last layer.
        module: The layer.
    """

    name: str
    module: nn.Module
    _input: list[Tensor] = field(default_factory=list)

    @property
    def features(self) -> Tensor:
        """Return the features, detached, in the type that the model computed them in.

        Raises:
            ModelError: If no forward has passed through the last layer.
        """
        if not self._input:
            raise ModelError("Expected a forward through the last layer, there was none.")
        return self._input[-1].detach().flatten(1)

    def explains(self, logits: Tensor) -> bool:
        """Say whether ``logits [batch, classes]`` of the latest forward are ``W x + b``.

        What follows the layer may only show for some images, as a bound on the logits does. Rows
        that are not finite are left out.
        """
        logits, x = logits.detach().flatten(1), self.features
        finite = logits.isfinite().all(dim=1) & x.isfinite().all(dim=1)
        return len(x) == len(logits) and is_product(
            self.module, x[finite], self.module.weight, logits[finite]
        )

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
def observe_features(
    model: nn.Module, head: Head, samples: int | None = None
) -> Iterator[Observation]:
    """Observe the last layer's input while the context is open, by one hook on that layer.

    >>> import torch
    >>> from gradscore.models.head import find_head
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    >>> images = torch.ones(2, 1, 2, 2)
    >>> with observe_features(model, find_head(model, images)) as observed:
    ...     logits = model(images)
    >>> observed.features.shape
    torch.Size([2, 4])

    Args:
        model: The classifier whose head it is.
        head: What :func:`find_head` found.
        samples: Observe only forwards of so many samples; None observes every one. (Recording
            the uses of parameters may add a forward of a few samples.)

    Yields:
        An object whose ``features`` are those of the latest forward, ``[batch, in_features]``.

    Raises:
        ModelError: If the head has no closed form, and so no features; the reason is given.
    """
    if not head.closed_form or head.module is None:
        raise ModelError(f"The last layer has no features to observe: {head.reason}.")
    observation = Observation(head.module, model.get_submodule(head.module))
    thread = threading.get_ident()

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        # No operation on the tensor here: a recorder of uses would see it as the model's own.
        ours = threading.get_ident() == thread
        if ours and (samples is None or len(args[0]) == samples):
            observation._input[:] = [args[0]]

    handle = observation.module.register_forward_hook(keep)
    try:
        yield observation
    finally:
        handle.remove()
