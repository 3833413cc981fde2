"""Loss gradients of the same samples in different batches, compared."""

import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor, nn

from gradscore.network.batches import (
    Composition,
    alone,
    extremes,
    rearranged,
    substitutes,
    synthetic_samples,
)
from gradscore.network.dry_runs import dry_run
from gradscore.network.facts import Contents, contents_of
from gradscore.network.float64 import Float64, ResultTypes
from gradscore.objective import Objective
from gradscore.outputs import logits_of

TOLERANCES = {torch.float64: 1e-8, torch.float32: 2e-3}
"""Relative error of a loss gradient by the least exact type of a forward; else LOOSEST."""

LOOSEST = 5e-2

SYNTHETIC = 1e-5
"""The same for samples that are made up, in which rounding may grow."""

SMALLEST = 1e-10
"""Loss gradients below are held to this instead of to themselves."""

TEMPERATURES = (1.0, 30.0, 1000.0)
"""Where the softmax is sharp, its gradient hides what a higher temperature shows."""

ROUNDING = 64
"""Errors of a logit, in units of its last place, that tell nothing."""

ALONE_VALUES = 2**20
"""So many values of input are run one sample at a time, of more samples some."""

NONE, SOME, EVERY = range(3)
"""Which samples of a batch are run by themselves as well."""


class Unknown(Exception):
    """The logits of the batch itself are not numbers, so that nothing can be compared."""


class Comparison:
    """Forwards of a model, or of a copy of it, over the same samples in different batches.

    Args:
        model: The model or its copy.
        in_float64: Whether it is a copy that computes in float64.
    """

    def __init__(self, model: nn.Module, *, in_float64: bool) -> None:
        self._model, self._in_float64 = model, in_float64
        self._runs = 0

    def changes(self, images: Tensor) -> tuple[Contents, Contents]:
        """Return what the model is made of before and after a forward, which is then undone."""
        for batch in (images[:1], images):
            with self._running(batch) as own, suppress(Exception):
                before = contents_of(self._model)
                self._model(own)
                return before, contents_of(self._model)
        return [], []

    def difference(self, images: Tensor, by_itself: int) -> float:
        """Return the largest relative difference of loss gradients, 0 if rounding explains it.

        Args:
            images: The batch.
            by_itself: Which samples are run as batches of their own: NONE, SOME or EVERY.

        Raises:
            Exception: Whatever the model raises for the batch itself.
        """
        own = self._logits(images)
        if own.isnan().any(dim=1).all():
            raise Unknown
        count = len(images) if by_itself == EVERY else _alone_at_most(images)
        some = torch.linspace(0, len(images) - 1, count).round().long()
        some = some.unique().to(images.device)

        def compositions(wild: bool) -> Iterator[Composition]:
            if by_itself:
                yield from extremes(images, some, wild=wild)
            if not by_itself or len(images) == 1 or len(some) < len(images):
                yield from rearranged(images, wild=wild)

        # Some models do not take values out of range, as of token ids, or another batch size.
        ways = (
            lambda: compositions(True),
            lambda: compositions(False),
            lambda: substitutes(images, wild=True),
            lambda: substitutes(images, wild=False),
        )
        difference = self._by_first(own, ways)
        if by_itself:
            difference = max(difference, self._by_first(own, [lambda: alone(images, some)]))
        limit = TOLERANCES[torch.float64]
        if difference > limit:
            limit = self._limit(images)
        return difference if difference > limit else 0.0

    def difference_on_synthetic(self, images: Tensor) -> float:
        """Return the largest difference in samples unlike those of a batch, 0 if none is certain.

        A model may not take such samples; that is no fault.
        """
        others = synthetic_samples(images)
        if others is None:
            return 0.0
        numbers = torch.arange(len(others), device=others.device)
        try:
            own = self._logits(others)
            difference = self._by_first(own, [lambda: alone(others, numbers)])
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return 0.0
        return difference if difference > SYNTHETIC else 0.0

    def _by_first(self, own: Tensor, ways: Sequence[Callable[[], Iterator[Composition]]]) -> float:
        """Return the largest difference in the first of some ways that the model can go."""
        for way in ways:
            try:
                return max(
                    _relative(own[numbers], self._logits(batch)[places])
                    for batch, numbers, places in way()
                )
            except torch.OutOfMemoryError:
                raise
            except Exception:  # another way may do
                continue
        return 0.0

    def _logits(self, images: Tensor) -> Tensor:
        with self._running(images) as own:
            return logits_of(self._model(own), len(images)).to(torch.float64)

    @contextmanager
    def _running(self, images: Tensor) -> Iterator[Tensor]:
        """Let a forward leave no trace, and let chance be another in each."""
        self._runs += 1
        widening = Float64() if self._in_float64 else nullcontext()
        with dry_run(self._model, images) as own, widening:
            _seed(self._runs, images.device)
            yield own

    def _limit(self, images: Tensor) -> float:
        """Return what rounding explains, by the types computed in."""
        with ResultTypes() as types:
            self._logits(images)
        return max(TOLERANCES.get(dtype, LOOSEST) for dtype in types.seen)


def _alone_at_most(images: Tensor) -> int:
    return min(len(images), max(4, ALONE_VALUES // max(1, images[0].numel())))


def _relative(own: Tensor, others: Tensor) -> float:
    """Return the largest relative difference of loss gradients at logits ``[samples, classes]``.

    Samples whose own logits are not numbers are left out.
    """
    told = (own.isfinite() | (own == -math.inf)).all(dim=1)
    own, others = own[told], others[told]
    size = own.masked_fill(~own.isfinite(), 0).abs().amax(dim=1, keepdim=True)
    worst = 0.0
    for temperature in TEMPERATURES:
        objective = Objective(temperature=temperature)
        mine, theirs = map(objective.logit_gradient, (own, others))
        floor = ROUNDING * torch.finfo(own.dtype).eps * size / (temperature * own.shape[1])
        off = ((mine - theirs).abs() - floor).clamp_min(0)
        share = off.amax(dim=1) / mine.abs().amax(dim=1).clamp_min(SMALLEST / temperature)
        worst = max([worst, *share.nan_to_num(nan=math.inf).tolist()])
    return worst


def _seed(seed: int, device: torch.device) -> None:
    """Seed what forwards draw from; ``torch.manual_seed`` asks every kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
