"""Whether what a model says of a sample depends on the batch that the sample is in, or on chance.

A sample's norm is what one backward of it alone gives. A forward of a whole batch gives the same
only where no sample's logits depend on the others, on its place, on their number or on chance.
Nothing in a model's code shows that for certain, so it is tried, in float64, where rounding hides
nothing: the same samples alone, and in batches that are made to move any statistic.
"""

import math
import random
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import torch
from torch import Tensor, nn

from gradscore.errors import GradScoreWarning, ModelError
from gradscore.objective import logit_gradient
from gradscore.outputs import logits_of
from gradscore.uses.companies import Company, alone, extremes, rearranged, substitutes
from gradscore.uses.state import Contents, contents_of, leave_out, one_state, state_of
from gradscore.uses.trial import trial_images
from gradscore.uses.twin import Float64, Types, float64_twin, widened

TOLERANCES = {torch.float64: 1e-8, torch.float32: 2e-3}
"""Relative error of a loss gradient by the least exact type of a forward; else LOOSEST."""

LOOSEST = 5e-2

SMALLEST = 1e-10
"""Loss gradients below are held to this instead of to themselves."""

TEMPERATURES = (1.0, 30.0, 1000.0)
"""Where the softmax is sharp, its gradient hides what a higher temperature shows."""

ROUNDING = 64
"""Errors of a logit, in units of its last place, that tell nothing."""

ALONE_VALUES = 2**20
"""So many values of input are run one sample at a time, of more samples some."""

Scope = frozenset[int]
"""Identities of the parameters whose gradients are proved as well."""


class _Unknown(Exception):
    """The logits of the batch itself are not numbers, so that nothing can be compared."""


def check_independence(
    model: nn.Module, images: Tensor, selected: Collection[Tensor] = ()
) -> None:
    """Refuse a model in which a sample's logits, or gradients, depend on the rest of the batch.

    The first batch of a kind is tried at length, one of another number of samples by two forwards
    in float64, and what was tried before not at all; but for models that send samples
    elsewhere by their values, of which every batch is tried.

    Args:
        model: A classifier in eval mode; it is left as it is.
        images: Its input, shape ``[batch, ...]``.
        selected: The parameters whose gradients are asked for.

    Raises:
        ModelError: If they do, or if they are random.
    """
    if len(images):
        with one_state(model):
            _check(model, images, selected)


def _check(model: nn.Module, images: Tensor, selected: Collection[Tensor]) -> None:
    found = state_of(model).found
    kind = check_independence, images.shape[1:], images.dtype, images.device
    proved: dict[int, set[Scope | None]] = found.setdefault(kind, {})
    scopes = proved.get(len(images), ()) if not found.get(sends_by_value) else ()
    if None in scopes:
        return
    scope = frozenset(id(parameter) for parameter in selected)
    if scope in scopes:
        return
    with (
        torch.inference_mode(False),
        torch.autocast(images.device.type, enabled=False),
        warnings.catch_warnings(),
    ):
        images = images.clone() if images.is_inference() else images.detach()
        # A model's own warnings are for the caller's forward.
        warnings.simplefilter("ignore")
        try:
            proved_for = _prove(model, images, scope, thorough=not proved)
        except _Unknown:  # the next batch will tell
            return
    proved.setdefault(len(images), set()).add(proved_for)
    _tell(found.get(_prove_in_own_type, []))


def sends_by_value(model: nn.Module) -> None:
    """Note that a model sends samples elsewhere by their values, as mixtures of experts do.

    Whether its samples depend on each other may then differ from one batch to the next.
    """
    state_of(model).found[sends_by_value] = True


def _prove(model: nn.Module, images: Tensor, scope: Scope, *, thorough: bool) -> Scope | None:
    """Return the parameters for which no sample depends on others, ``None`` for all of them.

    The logits may not depend on the rest of the batch where their gradients do, as those of a
    gate that closes the way to it. With the parameters moved a little, the logits show that too.

    Raises:
        ModelError: If a sample does depend on others.
    """
    everything = frozenset(id(parameter) for parameter in model.parameters())
    x = widened(images)
    for moved in dict.fromkeys((everything, scope, frozenset())):
        try:
            trial = _Trial(float64_twin(model, moved), in_float64=True)
            if thorough:
                leave_out(model, *trial.changes(x))
            difference = trial.difference(x, thorough=thorough)
        except _Unknown:
            if moved:
                continue
            raise
        except Exception as error:  # whatever the model, or a part of it, does not take
            if moved:
                continue
            return _prove_in_own_type(model, images, error)
        if not difference:
            return None if moved == everything else moved
        if moved == scope or not moved:
            raise _mixing(difference)
    raise AssertionError("the last of them answers")


def _prove_in_own_type(model: nn.Module, images: Tensor, reason: Exception) -> Scope:
    """Prove by the model itself what no copy in float64 can, and tell that it is less sure."""
    trial = _Trial(model, in_float64=False)
    try:
        leave_out(model, *trial.changes(images))
        difference = trial.difference(images, thorough=True)
    except Exception:  # what is wrong with it, the forward that follows will say
        return frozenset()
    if difference:
        raise _mixing(difference)
    state_of(model).found.setdefault(_prove_in_own_type, [str(reason).partition("\n")[0]])
    return frozenset()


def _tell(reasons: list[str]) -> None:
    """Tell, once for a state of a model, why a proof is less sure than usual."""
    while reasons:
        warnings.warn(
            "That no image's logits depend on the rest of the batch was checked only to within "
            f"what rounding allows, for the model does not run in float64: {reasons.pop()}",
            GradScoreWarning,
            stacklevel=4,
        )


def _mixing(difference: float) -> ModelError:
    return ModelError(
        "Expected a model whose logits for an image do not depend on the rest of the batch, nor "
        "on chance, got a loss gradient that is off by "
        f"{min(difference, 1.0):.2g} of its size in another batch."
    )


class _Trial:
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

    def difference(self, images: Tensor, *, thorough: bool) -> float:
        """Return the largest relative difference of loss gradients, 0 if rounding explains it.

        Raises:
            Exception: Whatever the model raises for the batch itself.
        """
        own = self._logits(images)
        if own.isnan().any(dim=1).all():
            raise _Unknown
        some = torch.linspace(0, len(images) - 1, _alone_at_most(images)).round().long()
        some = some.unique().to(images.device)

        def companies(wild: bool) -> Iterator[Company]:
            if thorough:
                yield from extremes(images, some, wild=wild)
            if not thorough or len(images) == 1 or len(some) < len(images):
                yield from rearranged(images, wild=wild)

        # Some models do not take values out of range, as of token ids, or another batch size.
        ways = (
            lambda: companies(True),
            lambda: companies(False),
            lambda: substitutes(images, wild=True),
            lambda: substitutes(images, wild=False),
        )
        difference = self._by_first(own, ways)
        if thorough:
            difference = max(difference, self._by_first(own, [lambda: alone(images, some)]))
        limit = TOLERANCES[torch.float64]
        if difference > limit:
            limit = self._limit(images)
        return difference if difference > limit else 0.0

    def _by_first(self, own: Tensor, ways: Sequence[Callable[[], Iterator[Company]]]) -> float:
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
        with trial_images(self._model, images) as own, widening:
            _seed(self._runs, images.device)
            yield own

    def _limit(self, images: Tensor) -> float:
        """Return what rounding explains, by the types computed in."""
        with Types() as types:
            self._logits(images)
        return max(TOLERANCES.get(dtype, LOOSEST) for dtype in types.seen)


def _alone_at_most(images: Tensor) -> int:
    return min(len(images), max(4, ALONE_VALUES // max(1, images[0].numel())))


def _relative(own: Tensor, others: Tensor) -> float:
    """Return the largest relative difference of loss gradients at logits ``[samples, classes]``.

    Samples whose own logits are not numbers are left out.
    """
    told = ~own.isnan().any(dim=1)
    own, others = own[told], others[told]
    size = own.masked_fill(~own.isfinite(), 0).abs().amax(dim=1, keepdim=True)
    worst = 0.0
    for temperature in TEMPERATURES:
        mine, theirs = (logit_gradient(f, temperature) for f in (own, others))
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
