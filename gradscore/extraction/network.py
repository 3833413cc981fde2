"""The classifier as an extraction asks it: where it is, and in which precision it runs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradscore.capture import own_images
from gradscore.errors import ModelError, memory_ended
from gradscore.extraction.precision import PRECISIONS
from gradscore.layers.head import Head
from gradscore.network import preserve_state, wrap_forward_errors
from gradscore.outputs import logits_of


@dataclass(frozen=True)
class Network:
    """A classifier on its device.

    Attributes:
        model: The classifier, in evaluation mode.
        head: Its last layer.
        device: Where it is.
        precision: One of :data:`~gradscore.extraction.precision.PRECISIONS`; in half precision
            the forward runs under autocast.
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
        with self.autocast(), preserve_state(self.model), wrap_forward_errors(self.model, images):
            own = own_images(self.model, images)
            return logits_of(self.model(own), len(images))

    def autocast(self) -> AbstractContextManager:
        """Return the context of a forward."""
        dtype = PRECISIONS[self.precision]
        if dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype)


def device_for(device: str, precision: str) -> torch.device:
    """Return the device that is meant by ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ModelError: If it is not there, or does not have the precision.
    """
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ModelError("Expected a CUDA device, found none; use `device='cpu'`.")
    place = torch.device("cuda" if there and device != "cpu" else "cpu")
    if precision == "tf32" and place.type != "cuda":
        raise ModelError("Expected a CUDA device for precision tf32, got a CPU; use float32.")
    return place


NO_ENGINE = "unable to find an engine"
"""What cuDNN says where no algorithm finds the working memory that it needs."""


class OutOfMemory(ModelError):
    """Memory does not suffice for a batch."""


@contextmanager
def memory_for(images: Tensor) -> Iterator[None]:
    """Name the batch size where memory does not suffice for a batch.

    Raises:
        OutOfMemory: In place of the error that says so.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory_ended(error) and NO_ENGINE not in str(error):
            raise
        raise OutOfMemory(
            f"Out of memory with {len(images)} images at once; choose a smaller "
            "`batch_size=N`, or `batch_size='auto'`."
        ) from error
