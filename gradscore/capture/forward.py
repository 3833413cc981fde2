"""What one recorded forward hands on: its logits, its calls, and where its samples are."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from gradscore.capture.batch_dimension import Dimensions
from gradscore.capture.calls import RecordedCall


@dataclass
class Forward:
    """One recorded forward, and where the samples are in its calls.

    Attributes:
        logits: Output of the model, shape ``[batch, classes]``, with its graph down to the first
            recorded call.
        start: The tensor at which that graph begins.
        uncovered: Names of parameters that are used in a way that was not recorded.
        differentiates: Whether the model takes gradients of its own: none of ours can then be
            distinguished from those.
        coarsest: The coarsest floating type among what the calls returned.
        calls: The calls that took selected parameters, in order.
        dimensions: Batch dimensions of each of these; ``None`` where they are not known.
        edges: Graph edges of the selected parameters that something was derived from, by name.
        forget: Forgets the batch dimensions that are kept, for whoever finds that gradients had
            not shown them.
    """

    logits: Tensor
    start: Tensor
    uncovered: frozenset[str]
    differentiates: bool
    coarsest: torch.dtype
    calls: list[RecordedCall] = field(default_factory=list)
    dimensions: Dimensions = field(default_factory=list)
    edges: dict[str, GradientEdge] = field(default_factory=dict)
    forget: Callable[[], object] = lambda: None
