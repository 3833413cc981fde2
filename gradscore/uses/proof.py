"""Where the samples are in every use, and the proof of it by a second forward.

It takes a few of the samples in another order. The axis of the batch is the one whose size
changes, and the logits must be those of the first forward: then no sample depends on the others,
nor on its place. Of how the rows stand within the axis, the gradients bear witness.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradscore.errors import ModelError
from gradscore.memory import memory_ended
from gradscore.uses.layout import (
    UseLayout,
    keeps_samples_apart,
    layout_by_shapes,
    lone_layout,
    same_uses,
    signature_of,
)
from gradscore.uses.recorder import Recorder
from gradscore.uses.state import state_of
from gradscore.uses.witness import confirmed

MOST_KNOWN = 64
"""How many proofs are kept for a state of a model."""

Layouts = list[UseLayout | None]
Run = Callable[[Tensor, Sequence[bool]], Recorder]


def placed_forward(
    model: nn.Module, images: Tensor, run: Run, expansions: Sequence[bool] = ()
) -> tuple[Recorder, Layouts]:
    """Run a model, and tell where the samples are in each use.

    Args:
        model: The model.
        images: Its input, shape ``[batch, ...]``.
        run: Runs and records a forward over images, with what is known of its expansions.
        expansions: Which of the calls that may spread a parameter over the batch do.

    Returns:
        The recorded forward, and a layout for each use, ``None`` where it cannot be told.

    Raises:
        ModelError: If an image's logits depend on the rest of the batch.
    """
    first = run(images, expansions)
    if first.differentiates:
        return first, [None] * len(first.uses)
    if len(images) == 1:
        return first, [lone_layout(use) for use in first.uses]
    # One proof serves a whole run, for what was called and for the state that the model is in.
    known = state_of(model).found.setdefault(placed_forward, OrderedDict())
    key = _key(first)
    if key in known:
        known.move_to_end(key)
    elif first.moves_by_value:
        return first, _prove(images, first, run)[0]
    else:
        # The graphs of two forwards are not held together, though this one has to be run again.
        first.let_go()
        layouts, lasting = _prove(images, first, run)
        first = run(images, first.expansions)
        if _key(first) != key or not lasting:
            return first, layouts if _key(first) == key else [None] * len(first.uses)
        known[key] = layouts
        while len(known) > MOST_KNOWN:
            known.popitem(last=False)
    return first, known[key]


def _key(recorder: Recorder) -> Any:
    return len(recorder.logits), signature_of(recorder.uses), tuple(recorder.calls)


def _prove(images: Tensor, first: Recorder, run: Run) -> tuple[Layouts, bool]:
    """Return the layouts, and whether they hold for other images as well."""
    unknown: Layouts = [None] * len(first.uses)
    picked = _picked(len(images))
    some = images[picked]
    try:
        second = run(some, first.expansions)
    except Exception as error:  # a model that takes this number of images alone is not compared
        if memory_ended(error):
            raise
        return unknown, False
    check_apart(first.logits[picked], second.logits, _tolerance(first))
    if not (keeps_samples_apart(first.calls, second.calls) and same_uses(first.uses, second.uses)):
        return unknown, True
    layouts = [
        layout_by_shapes(use, twin, len(images), len(picked))
        for use, twin in zip(first.uses, second.uses, strict=True)
    ]
    if first.moves_by_value:
        return confirmed(first, layouts, _tolerance(first), retain=True)
    layouts, told = confirmed(second, layouts, _tolerance(second), retain=False)
    alike = bool((some == some[:1]).all())
    return layouts, told and not alike


def _picked(batch: int) -> list[int]:
    """Return numbers of a few samples, not as many as there are, in an order of no symmetry."""
    return [2, 1] if batch == 3 else [batch - 1, 0, batch // 2]


def tolerance_of(types: Iterable[torch.dtype]) -> float:
    """Return the relative error within which results of two kernels of such types are the same."""
    return min(0.05, 10 * math.sqrt(max(torch.finfo(dtype).eps for dtype in types)))


def _tolerance(recorder: Recorder) -> float:
    types = {dtype for call in recorder.calls for _, dtype in call.results}
    return tolerance_of({t for t in types if t.is_floating_point} | {recorder.logits.dtype})


def check_apart(logits: Tensor, others: Tensor, tolerance: float) -> None:
    """Refuse a model in which a sample's logits depend on the others, or on their number.

    Args:
        logits: Logits of some samples, shape ``[samples, classes]``.
        others: Logits of the same samples in another batch.
        tolerance: Relative error within which they are the same.

    Raises:
        ModelError: If they differ.
    """
    if logits.shape != others.shape:
        return
    same = (logits == others) | (logits.isnan() & others.isnan())
    difference = float((logits - others).detach().abs().masked_fill(same, 0).max())
    largest = float(logits.detach().masked_fill(~logits.isfinite(), 0).abs().max())
    if not difference <= tolerance * largest:
        raise ModelError(
            "Expected a model whose logits for an image do not depend on the rest of the batch, "
            f"nor on chance, got ones that differ by {difference:.2g}."
        )
