"""Where the samples are in every use, and the proof of it by a second forward.

It takes a few of the samples in another order. The axis of the batch is the one whose size
changes. Of how the rows stand within the axis, the gradients bear witness. Once this is known of
a few samples, it is known of batches of any size; where nothing arrived at a use, the gradients
of the whole batch are asked.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gradscore.capture.layout import (
    UseLayout,
    keeps_samples_apart,
    layout_by_shapes,
    lone_layout,
    same_uses,
    signature_of,
)
from gradscore.capture.recorder import Recorder
from gradscore.capture.witness import confirmed
from gradscore.errors import memory_ended
from gradscore.network import state_of, unobserved

MOST_KNOWN = 64
"""How many proofs are kept for a state of a model."""

Layouts = list[UseLayout | None]
Run = Callable[[Tensor, Sequence[bool]], Recorder]


def placed_forward(
    model: nn.Module, images: Tensor, run: Run, expansions: Sequence[bool] = ()
) -> tuple[Recorder, Layouts]:
    """Run a model, and tell where the samples are in each use.

    Args:
        model: The model, whose samples do not depend on each other.
        images: Its input, shape ``[batch, ...]``.
        run: Runs and records a forward over images, with what is known of its expansions.
        expansions: Which of the calls that may spread a parameter over the batch do.

    Returns:
        The recorded forward, and a layout for each use, ``None`` where it cannot be told.
    """
    first = run(images, expansions)
    if first.differentiates:
        return first, [None] * len(first.uses)
    if len(images) == 1:
        return first, [lone_layout(use) for use in first.uses]
    # One proof serves a whole run, for what was called and for the state that the model is in.
    found = state_of(model).found
    known: OrderedDict[Any, Layouts] = found.setdefault(placed_forward, OrderedDict())
    key = _key(first)
    if key in known:
        known.move_to_end(key)
    elif first.moves_by_value:
        return first, _told_by_itself(first, _by_shapes(first, _run_few(images, first, run)))
    else:
        smaller: dict[Any, Smaller] = found.setdefault(Smaller, {})
        kind = _kind(first, images)
        layouts = smaller[kind].layouts_of(first) if kind in smaller else None
        if layouts is None:
            # The graphs of two forwards are not held together, though this one is to run again.
            first.let_go()
            second = _run_few(images, first, run)
            layouts = _confirmed_by(second, _by_shapes(first, second))
            first = run(images, first.expansions)
            if second is None or _key(first) != key:
                return first, [None] * len(first.uses)
            second.let_go()
            smaller[kind] = Smaller(second, layouts)
        if not all(layout is None or layout.told for layout in layouts):
            layouts = _told_by_more(first, layouts)
        known[key] = layouts
        while len(known) > MOST_KNOWN:
            known.popitem(last=False)
        return first, _for_itself(layouts)
    first.forget = lambda: known.pop(key, None)
    return first, known[key]


@dataclass(frozen=True)
class Smaller:
    """A forward over a few samples, and the layouts that its gradients confirmed.

    By comparison with it, those of a batch of any other size are known.
    """

    recorder: Recorder
    layouts: Layouts

    def layouts_of(self, first: Recorder) -> Layouts | None:
        """Return the layouts of a forward, or ``None`` if the comparison does not tell them."""
        if len(first.logits) == len(self.recorder.logits):
            return None
        pairs = list(zip(_by_shapes(first, self.recorder), self.layouts, strict=True))
        agree = all(old is None or (new and new.same_axes(old)) for new, old in pairs)
        return self.layouts if agree else None


def _key(recorder: Recorder) -> Any:
    return len(recorder.logits), signature_of(recorder.uses), tuple(recorder.calls)


def _kind(recorder: Recorder, images: Tensor) -> Any:
    uses = [(u.arguments.function, tuple(slot for slot, _ in u.operands)) for u in recorder.uses]
    return images.shape[1:], images.dtype, tuple(uses)


def _run_few(images: Tensor, first: Recorder, run: Run) -> Recorder | None:
    """Run a few of the images; ``None`` where the model does not take this number alone."""
    try:
        with unobserved():
            return run(images[_picked(len(images))], first.expansions)
    except Exception as error:  # a model that takes this number of images alone is not compared
        if memory_ended(error):
            raise
        return None


def _picked(batch: int) -> list[int]:
    """Return numbers of a few samples, not as many as there are, in an order of no symmetry."""
    return [2, 1] if batch == 3 else [batch - 1, 0, batch // 2]


def _by_shapes(first: Recorder, second: Recorder | None) -> Layouts:
    """Return the layouts that the comparison of two forwards tells."""
    if (
        second is None
        or not keeps_samples_apart(first.calls, second.calls)
        or not same_uses(first.uses, second.uses)
    ):
        return [None] * len(first.uses)
    batch, few = len(first.logits), len(second.logits)
    return [
        layout_by_shapes(use, twin, batch, few)
        for use, twin in zip(first.uses, second.uses, strict=True)
    ]


def _confirmed_by(second: Recorder | None, layouts: Layouts) -> Layouts:
    """Return the layouts that the gradients of a forward over a few samples agree with."""
    if second is None or not any(layouts):
        return layouts
    return confirmed(second, layouts, _tolerance(second), retain=False)


def _told_by_itself(first: Recorder, layouts: Layouts) -> Layouts:
    """Return the layouts that the gradients of a batch agree with: for it alone they do."""
    return _for_itself(confirmed(first, layouts, _tolerance(first), retain=True))


def _for_itself(layouts: Layouts) -> Layouts:
    """Return the layouts for the batch that they were asked of: rows of zeros are no matter."""
    return [layout and replace(layout, told=True) for layout in layouts]


def _told_by_more(first: Recorder, layouts: Layouts) -> Layouts:
    """Return layouts, those that a few samples did not tell as the whole batch tells them."""
    asked = [layout if layout and not layout.told else None for layout in layouts]
    more = confirmed(first, asked, _tolerance(first), retain=True)
    return [new if ask else old for ask, new, old in zip(asked, more, layouts, strict=True)]


def _tolerance(recorder: Recorder) -> float:
    """Return the relative error within which gradients of two kernels are the same."""
    types = {dtype for call in recorder.calls for _, dtype in call.results}
    floating = {t for t in types if t.is_floating_point} | {recorder.logits.dtype}
    return min(0.05, 10 * math.sqrt(max(torch.finfo(dtype).eps for dtype in floating)))
