"""What the closed form takes, and what it gives back."""

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from gradscore.choices import BACKENDS
from gradscore.errors import InvalidArgument


def check_backend(backend: str) -> None:
    """Raise unless a backend is known.

    Raises:
        InvalidArgument: Naming those that are.
    """
    if backend not in BACKENDS:
        raise InvalidArgument(f"Expected backend {', '.join(BACKENDS)}, got {backend!r}.")


def check_matrix(tensor: Tensor, what: str) -> None:
    """Raise unless ``tensor`` is a floating-point matrix with at least one column.

    Raises:
        InvalidArgument: Naming ``what`` was expected.
    """
    if tensor.ndim != 2 or tensor.shape[1] == 0 or not tensor.is_floating_point():
        raise InvalidArgument(f"Expected {what}, got {tensor.dtype} {list(tensor.shape)}.")


def check_finite(score: Tensor, inputs: str) -> Tensor:
    """Return ``score [batch]``, or raise naming its first row that is not finite.

    Raises:
        InvalidArgument: Naming the ``inputs`` to be looked at, and the row.
    """
    if not torch.compiler.is_compiling() and not _all_finite(score):
        row = int((~score.isfinite()).nonzero()[0, 0])
        raise InvalidArgument(
            f"Expected finite {inputs}, got a score of {score[row].item()} in row {row}."
        )
    return score


def check_head(features: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise unless features fit a head.

    Raises:
        InvalidArgument: With the types and shapes that came.
    """
    check_matrix(features, "features [batch, in_features]")
    check_matrix(weight, "weight [classes, in_features]")
    fits = weight.shape[1] == features.shape[1] and weight.dtype == features.dtype
    if bias is not None:
        fits = fits and bias.shape == weight.shape[:1] and bias.dtype == features.dtype
    if not fits or not weight.shape[0]:
        shapes = [f"{t.dtype} {list(t.shape)}" for t in (features, weight, bias) if t is not None]
        raise InvalidArgument(
            "Expected features [batch, in_features], weight [classes, in_features] and bias "
            f"[classes] of one type, got {', '.join(shapes)}."
        )


def _all_finite(score: Tensor) -> bool:
    # torch would wake its threads, which wait for each other by spinning: where the cores are
    # busy, that takes longer than the scores themselves.
    if score.is_cpu and type(score) is Tensor and not is_functorch_wrapped_tensor(score):
        return bool(np.isfinite(score.detach().numpy()).all())
    return bool(score.isfinite().all())
