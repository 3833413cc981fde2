"""Loss gradients of the same samples in batches of different composition, compared."""

import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradscore.network.contents import Contents, contents_of
from gradscore.network.forwards import dry_run
from gradscore.objective import Objective
from gradscore.outputs import logits_of

TOLERANCES = {torch.float64: 1e-8, torch.float32: 2e-3}
"""Relative error of a loss gradient by the least exact type of a forward; else LOOSEST."""

LOOSEST = 5e-2

SYNTHETIC = 1e-5
"""The same for samples that are made up, in which rounding may grow."""

SMALLEST = 1e-10
"""Errors of loss gradients below are taken relative to this instead."""

TEMPERATURES = (1.0, 30.0, 1000.0)
"""Where the softmax is sharp, its gradient hides what a higher temperature shows."""

ROUNDING = 64
"""Errors of a logit, in units of its last place, that rounding explains."""

ALONE_VALUES = 2**20
"""So many values of input are run one sample at a time, of more samples some."""

NONE, SOME, EVERY = range(3)
"""Which samples of a batch are run by themselves as well."""

Composition = tuple[Tensor, Tensor, Tensor]
"""A batch, numbers of samples of the first batch, and where these stand in it."""


class Unknown(Exception):
    """The logits of the batch itself are not numbers, so that nothing can be compared."""


class Comparison:
    """Forwards of a model, or of a copy of it, over batches of different composition.

    Args:
        model: The model or its copy.
        context: What its forwards run in, such as the one in which a copy computes in float64.
    """

    def __init__(
        self, model: nn.Module, context: Callable[[], AbstractContextManager] = nullcontext
    ) -> None:
        self._model, self._context = model, context
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

        def compositions(out_of_range: bool) -> Iterator[Composition]:
            if by_itself:
                yield from _extremes(images, some, out_of_range=out_of_range)
            if not by_itself or len(images) == 1 or len(some) < len(images):
                yield from _rearranged(images, out_of_range=out_of_range)

        # Some models do not take values out of range, as of token ids, or another batch size.
        ways = (
            lambda: compositions(True),
            lambda: compositions(False),
            lambda: _substitutes(images, out_of_range=True),
            lambda: _substitutes(images, out_of_range=False),
        )
        difference = self._by_first(own, ways)
        if by_itself:
            difference = max(difference, self._by_first(own, [lambda: _alone(images, some)]))
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
            difference = self._by_first(own, [lambda: _alone(others, numbers)])
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
        with dry_run(self._model, images) as own, self._context():
            _seed_generators(self._runs, images.device)
            yield own

    def _limit(self, images: Tensor) -> float:
        """Return what rounding explains, by the types computed in."""
        with _ResultTypes() as types:
            self._logits(images)
        return max(TOLERANCES.get(dtype, LOOSEST) for dtype in types.seen)


class _ResultTypes(TorchDispatchMode):
    """See the floating-point types that are computed in, inside of functions as well."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note the types of its results."""
        result = func(*args, **(kwargs or {}))
        self.seen |= {
            leaf.dtype
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        }
        return result


def _alone_at_most(images: Tensor) -> int:
    return min(len(images), max(4, ALONE_VALUES // max(1, images[0].numel())))


def _relative(own: Tensor, others: Tensor) -> float:
    """Return the largest relative difference of loss gradients at logits ``[samples, classes]``.

    Samples whose own logits are not numbers are left out.
    """
    valid = (own.isfinite() | (own == -math.inf)).all(dim=1)
    own, others = own[valid], others[valid]
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


def _seed_generators(seed: int, device: torch.device) -> None:
    """Seed what forwards draw from; ``torch.manual_seed`` asks every kind of device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)


def _rearranged(images: Tensor, *, out_of_range: bool) -> Iterator[Composition]:
    """Yield every sample of a batch in another order among companions.

    Where companions may have no values that the batch has not, this is in two halves, each with
    companions of its own values: the largest of one of them is then another.
    """
    order = _order(images)
    if out_of_range and _is_continuous(images):
        companions, places = _companions(images, out_of_range), _places(images, 4, len(images))
        yield torch.cat([companions[:4], images[order], companions[4:]]), order, places
        return
    half = len(images) // 2
    for numbers in (order[half:], order[:half]):
        if len(numbers):
            companions = _companions(images[numbers], out_of_range)
            places = _places(images, 1, len(numbers))
            yield torch.cat([companions[2:3], images[numbers], companions[3:6]]), numbers, places


def _extremes(images: Tensor, numbers: Tensor, *, out_of_range: bool) -> Iterator[Composition]:
    """Yield a batch in which some samples stand backwards among companions, one of them twice."""
    companions, back = _companions(images, out_of_range), numbers.flip(0)
    batch = torch.cat([companions[4:5], images[back], images[back[:1]], companions[:2]])
    yield batch, back, _places(images, 1, len(back))


def _alone(images: Tensor, numbers: Tensor) -> Iterator[Composition]:
    """Yield some samples, each as a batch of its own."""
    first = torch.zeros(1, dtype=torch.long, device=images.device)
    for number in numbers:
        yield images[number][None], number[None], first


def _substitutes(images: Tensor, *, out_of_range: bool) -> Iterator[Composition]:
    """Yield batches of the same size: the samples in another order, then half of them replaced."""
    companions, order = _companions(images, out_of_range), _order(images)
    places = _places(images, 0, len(images))
    yield images[order], order, places
    for replaced, kept in ((places[::2], places[1::2]), (places[1::2], places[::2])):
        if len(kept) and len(replaced):
            batch = images[order]
            batch[replaced] = companions[torch.arange(len(replaced)) % len(companions)]
            yield batch, order[kept], kept


def synthetic_samples(images: Tensor) -> Tensor | None:
    """Return samples unlike those of a batch, ``[7, ...]``, or None where none can be made.

    What only certain values set off, in a sample of the batch or in another, may show in them.
    """
    if not (_is_continuous(images) and images[0].numel()):
        return None
    return _companions(images, out_of_range=True)


def _is_continuous(images: Tensor) -> bool:
    """Say whether images take values that they have not, as token ids do not."""
    return images.is_floating_point() or images.is_complex()


def _places(images: Tensor, first: int, count: int) -> Tensor:
    return torch.arange(first, first + count, device=images.device)


def _order(images: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randperm(len(images), generator=draw).to(images.device)


def _companions(images: Tensor, out_of_range: bool) -> Tensor:
    """Return samples unlike those of a batch, ``[7, ...]``; whole numbers keep to its range."""
    one, draw = images[0], torch.Generator().manual_seed(2)
    if not one.numel():
        return images[:1].expand(7, *one.shape)
    if out_of_range and _is_continuous(images):
        size = images.nan_to_num(posinf=0.0, neginf=0.0).abs().amax()
        noise = torch.randn((3, *one.shape), generator=draw, dtype=torch.float64)
        noise *= torch.tensor([1, 0.1, 30.0]).reshape(3, *[1] * one.ndim)
        zero = torch.zeros_like(one)
        large = zero + (3 * size + 1)
        flipped = one.flip(0, -1) if one.ndim > 1 else one.flip(0)
        return torch.cat([torch.stack([large, -large, zero, flipped]), noise.to(images) * size])
    values = images.flatten()
    drawn = torch.randint(len(values), (5, one.numel()), generator=draw).to(values.device)
    least, largest = (bound.expand(1, one.numel()) for bound in torch.aminmax(values))
    return torch.cat([largest, least, values[drawn]]).reshape(7, *one.shape)
