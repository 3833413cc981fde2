"""What a classifier may return, the logits in it, and outputs that are no logits."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gradscore.errors import InvalidArgument, ModelError

NAME = "logits"
"""The attribute, or the key, under which HuggingFace and others return the logits."""

NO_GRADIENT = (
    "Expected logits that carry a gradient, got a forward that runs without one; take "
    "torch.no_grad(), torch.inference_mode() or detach() out of it."
)
PROBABILITIES = (
    "its outputs are probabilities, not logits: scores take a softmax of them once more; return "
    "what enters its softmax"
)
SIGMOIDS = (
    "all its outputs lie between 0 and 1, as those of a sigmoid do, but scores take a softmax of "
    "them; return what enters the sigmoid"
)
ENOUGH = 64
"""How many outputs between 0 and 1 are no chance any more, where their rows do not sum to 1."""


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
    found = named_logits(output)
    if _fits(found, batch):
        return found
    got = _kind(output) if found is output else f"{_kind(output)} with {_kind(found)} as logits"
    raise ModelError(
        f"Expected the model to return logits [{batch}, classes] for {batch} images, as a tensor, "
        f"as .{NAME} or as ['{NAME}'], got {got}; wrap it: `class Logits(torch.nn.Module):`, "
        f"`    def forward(self, output): return {_way(output, batch)}`, "
        "`model = torch.nn.Sequential(model, Logits()).eval()`."
    )


def named_logits(output: Any) -> Any:
    """Return what an output calls its logits, or the output itself; nothing is checked."""
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


def check_carries_gradient(logits: Tensor) -> None:
    """Refuse logits of which autograd knows no gradient, though parameters require one.

    Raises:
        ModelError: If they have no graph.
    """
    if not logits.requires_grad:
        raise ModelError(NO_GRADIENT)


def check_numbers(logits: Tensor, first: int = 0) -> None:
    """Refuse logits that are NaN or infinite; minus infinity is a class of probability zero.

    Args:
        logits: Shape ``[batch, classes]``.
        first: Number of the first of these images among the caller's.

    Raises:
        InvalidArgument: Naming the first such image.
    """
    if not logits.numel() or float(logits.detach().amax()) < math.inf:  # NaN is the largest
        return
    invalid = (logits.isnan() | (logits == math.inf)).any(dim=1)
    if invalid.any():
        image = first + int(invalid.int().argmax())
        raise InvalidArgument(
            "Expected finite logits for every image, got NaN or infinity for image "
            f"{image}; look at that image and at the model's weights."
        )


def check_classes(logits: Tensor) -> None:
    """Refuse logits of one class, whose softmax is 1 and whose gradients are 0 for any input.

    Raises:
        ModelError: If ``logits [batch, classes]`` have one column.
    """
    if logits.shape[1] == 1:
        raise ModelError(
            "Expected logits of two or more classes, got one logit: return 0 and f, whose softmax "
            "holds the sigmoid of f."
        )


class OutputWatch:
    """Looks at a model's outputs until they show whether they can be logits.

    Logarithms of probabilities are left alone: they are logits less one number a row, so that
    their softmax, and with it every score and gradient, is that of the logits.
    """

    def __init__(self) -> None:
        self._between = 0
        self.settled = False

    def fault(self, outputs: Tensor) -> str:
        """Return what is wrong with a model's outputs, once it shows; nothing before or after.

        Args:
            outputs: What the model returned as logits, shape ``[batch, classes]``.
        """
        if self.settled or not outputs.numel():
            return ""
        outputs = outputs.detach()
        least, largest = (float(bound) for bound in outputs.aminmax())
        if not (least >= 0 and largest <= 1):
            self.settled = True
            return ""
        sums = outputs.sum(dim=1, dtype=torch.float64)
        tolerance = 1e-4 if torch.finfo(outputs.dtype).eps < 1e-4 else 2e-2
        if bool(((sums - 1).abs() <= tolerance).all()):
            self.settled = True
            return PROBABILITIES
        self._between += outputs.numel()
        # A sigmoid does not reach zero; what is cut off at zero does.
        self.settled = least == 0 or self._between >= ENOUGH
        return SIGMOIDS if self.settled and least > 0 else ""
