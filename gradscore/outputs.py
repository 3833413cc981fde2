"""What a classifier may return, and the logits in it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradscore.errors import ModelError

NAME = "logits"
"""The attribute, or the key, under which HuggingFace and others return the logits."""


def logits_of(output: Any, batch: int) -> Tensor:
    """Return the logits of what a model returned.

    >>> import torch
    >>> logits_of({"logits": torch.zeros(2, 3)}, 2).shape
    torch.Size([2, 3])

    Args:
        output: The logits, an object with an attribute ``logits``, or a mapping with that key.
        batch: Number of samples that went in.

    Returns:
        Logits, shape ``[batch, classes]``, as the model made them, with their graph.

    Raises:
        ModelError: If there is no floating tensor ``[batch, classes]``; the message holds the
            wrapper that would give it.
    """
    found = _named(output)
    if _fits(found, batch):
        return found
    got = _kind(output) if found is output else f"{_kind(output)} with {_kind(found)} as logits"
    raise ModelError(
        f"Expected the model to return logits [{batch}, classes] for {batch} images, as a tensor, "
        f"as .{NAME} or as ['{NAME}'], got {got}; wrap it: `class Logits(torch.nn.Module):`, "
        f"`    def forward(self, output): return {_way(output, batch)}`, "
        "`model = torch.nn.Sequential(model, Logits()).eval()`."
    )


def _named(output: Any) -> Any:
    """Return what an output calls its logits, or the output itself."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and NAME in output:
        return output[NAME]
    return getattr(output, NAME, output)


def _fits(value: Any, batch: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.ndim == 2
        and len(value) == batch
        and value.shape[1] > 0
        and value.is_floating_point()
    )


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {list(value.shape)}"
    return f"a {type(value).__name__}"


def _way(output: Any, batch: int) -> str:
    """Return the code that leads from an output to the first logits in it, as far as it shows."""
    if isinstance(output, Tensor):
        flat = (
            output.ndim > 2 and output.shape[0] == batch and output[0].numel() == output.shape[1]
        )
        return "output.flatten(1)" if flat else "..."
    if isinstance(output, Mapping):
        entries = [(f"output[{key!r}]", value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        entries = [(f"output[{place}]", value) for place, value in enumerate(output)]
    else:
        entries = [
            (f"output.{name}", value) for name, value in getattr(output, "__dict__", {}).items()
        ]
    return next((code for code, value in entries if _fits(value, batch)), "...")
