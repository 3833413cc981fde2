"""GEN: the generalised entropy of the largest softmax probabilities."""

import torch
from torch import Tensor

GAMMA, LARGEST = 0.1, 100
"""The paper's exponent and number of classes."""


def gen(logits: Tensor, *, gamma: float = GAMMA, largest: int = LARGEST) -> Tensor:
    """Return ``-sum_j q_j^gamma (1 - q_j)^gamma`` (Liu et al., CVPR 2023).

    Args:
        logits: Shape ``[rows, classes]``.
        gamma: The exponent.
        largest: Only so many of the largest probabilities count.

    Returns:
        At most 0, shape ``[rows]``, float64.
    """
    q = torch.softmax(logits.double(), dim=1)
    rest = 1 - q
    # Of the most probable class as the sum of all others, which keeps its digits near 1.
    first = q.argmax(dim=1, keepdim=True)
    rest.scatter_(1, first, q.scatter(1, first, 0).sum(dim=1, keepdim=True))
    places = q.topk(min(largest, q.shape[1]), dim=1).indices
    return -(q * rest).gather(1, places).pow(gamma).sum(dim=1)
