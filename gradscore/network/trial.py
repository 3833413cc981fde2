"""Forwards that only find something out about a model, and whether it is still the same model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gradscore.network.as_written import as_written
from gradscore.network.undisturbed import undisturbed

Structure = tuple[tuple[str, int], ...]
"""Names and identities of a model's modules and parameters."""


@contextmanager
def trial_images(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Let a forward leave no trace, whatever mode the caller is in.

    The model may write into its input, so it gets a copy; and what it keeps, it loses again.

    Args:
        model: The model; left as it is.
        images: Its input; left as it is.

    Yields:
        A copy of it; inside, no graph is recorded, and inference mode is off.
    """
    with torch.inference_mode(False), torch.no_grad(), undisturbed(model), as_written():
        yield images.clone()


def structure_of(model: nn.Module) -> Structure:
    """Return what a model is made of, to tell later whether a part of it was replaced.

    Returns:
        Names and identities of its modules and parameters.
    """
    return tuple(
        (name, id(part)) for name, part in (*model.named_modules(), *model.named_parameters())
    )
