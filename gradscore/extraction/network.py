"""The classifier as an extraction asks it: where it is, and in which precision it runs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradscore.errors import ModelError
from gradscore.models.head import Head
from gradscore.outputs import logits_of
from gradscore.uses import undisturbed

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Network:
    """A classifier on its device.

    Attributes:
        model: The classifier, in evaluation mode.
        head: Its last layer.
        device: Where it is.
        precision: One of :data:`PRECISIONS`; below float32 the forward runs under autocast.
    """

    model: nn.Module
    head: Head
    device: torch.device
    precision: str = "float32"

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits of a batch on the device, shape ``[batch, classes]``.

        Raises:
            ModelError: If the model does not return logits.
        """
        with self.autocast(), undisturbed(self.model):
            return logits_of(self.model(images), len(images))

    def autocast(self) -> AbstractContextManager:
        """Return the context of a forward."""
        dtype = PRECISIONS[self.precision]
        if dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype)


@contextmanager
def memory_for(images: Tensor) -> Iterator[None]:
    """Name the batch size where memory does not suffice for a batch.

    Raises:
        ModelError: In place of the out-of-memory error.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"Out of memory with {len(images)} images at once; choose a smaller --batch-size, "
            "or --batch-size auto."
        ) from error
