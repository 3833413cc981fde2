"""What a detector says of each image."""

from typing import NamedTuple

import torch
from torch import Tensor


class Decision(NamedTuple):
    """What a detector says of a batch of images.

    Attributes:
        logits: The model's outputs, shape ``[batch, classes]``.
        score: Scores, shape ``[batch]``, float64; higher means more ID.
        p_value: ``(1 + #{s_i <= s}) / (n + 1)`` over the ``n`` calibration scores ``s_i``, shape
            ``[batch]``, float64: the share of clean images with so low a score.
        accepted: Whether the score is at least the threshold, shape ``[batch]``.
    """

    logits: Tensor
    score: Tensor
    p_value: Tensor
    accepted: Tensor


def decide(logits: Tensor, score: Tensor, calibration: Tensor, value: float | Tensor) -> Decision:
    """Return the decision from scores.

    Args:
        logits: Shape ``[batch, classes]``.
        score: Shape ``[batch]``, higher means more ID.
        calibration: Calibration scores in ascending order, shape ``[n]``, float64.
        value: The threshold; images with a lower score are flagged.
    """
    score = score.double()
    counts = torch.searchsorted(calibration, score.contiguous(), right=True)
    p_value = (1 + counts).double() / (len(calibration) + 1)
    return Decision(logits, score, p_value, score >= value)
