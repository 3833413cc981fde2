"""Which gradient is scored: the loss, its gradient at the logits, and the order of the norm.

Uniform target (Huang, Geng & Li, NeurIPS 2021, Eq. 5): ``KL(u || softmax(f/T))``, with ``u``
uniform over the ``C`` classes. One-hot target (their Fig. 3): the cross-entropy of
``softmax(f/T)`` to the predicted class, the first largest logit.

Both gradients are written so as to keep their digits where the plain formula loses them: close
to the uniform distribution, and for a softmax that is one-hot to rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gradscore.choices import RECORDED_TARGETS, TARGETS
from gradscore.errors import InvalidArgument
from gradscore.norms import check_order

NEAR = 0.5
"""Up to this largest ``|f/T - mean f/T|`` a softmax counts as nearly uniform."""

TERMS = 14
"""Powers of the series of ``exp z`` there: the next term is below 1e-16 of the first."""


def check_temperature(temperature: float) -> float:
    """Return ``temperature`` as a float, or raise unless it is positive and finite.

    Raises:
        InvalidArgument: If it is not a number, not positive, or infinite.
    """
    try:
        value = float(temperature)
    except (TypeError, ValueError):
        raise InvalidArgument(f"Expected temperature > 0, got {temperature!r}.") from None
    if not 0 < value < math.inf:
        raise InvalidArgument(f"Expected temperature > 0, got {temperature}.")
    return value


def check_epsilon(epsilon: float) -> float:
    """Return the magnitude of a perturbation as a float, or raise unless finite and not negative.

    Raises:
        InvalidArgument: If it is not a number, negative, or infinite.
    """
    try:
        value = float(epsilon)
    except (TypeError, ValueError):
        raise InvalidArgument(f"Expected epsilon >= 0, got {epsilon!r}.") from None
    if not 0 <= value < math.inf:
        raise InvalidArgument(f"Expected epsilon >= 0, got {epsilon}.")
    return value


def check_target(target: str, known: Sequence[str] = TARGETS) -> str:
    """Return ``target``, or raise unless it is one of ``known``.

    Raises:
        InvalidArgument: If it is unknown.
    """
    if target not in known:
        raise InvalidArgument(f"Expected target {' or '.join(known)}, got {target!r}.")
    return target


@dataclass(frozen=True)
class Objective:
    """The loss whose gradient is scored, and the order of the gradient's norm.

    Args:
        p: Order of the norm, positive; ``math.inf`` is allowed, and so are fractions.
        temperature: Softmax temperature ``T``, positive, without unit.
        target: ``uniform`` for ``KL(u || softmax(f/T))``, ``one-hot`` for the cross-entropy to
            the predicted class.

    Raises:
        InvalidArgument: If ``p`` or ``temperature`` is not positive, or ``target`` is unknown.
    """

    p: float = 1.0
    temperature: float = 1.0
    target: str = "uniform"

    KNOWN_TARGETS: ClassVar[tuple[str, ...]] = TARGETS

    def __post_init__(self) -> None:
        """Check every setting, once for all who are handed this."""
        object.__setattr__(self, "p", check_order(self.p))
        object.__setattr__(self, "temperature", check_temperature(self.temperature))
        check_target(self.target, self.KNOWN_TARGETS)

    def loss(self, logits: Tensor) -> Tensor:
        """Return each sample's loss, differentiable; autograd keeps the digits of its gradient.

        Uniform: with ``z = f/T - mean(f/T)`` it is ``log mean exp z``. Near uniform its gradient
        ``softmax - 1/C`` cancels; there it is ``log1p(mean(phi(z)))`` with ``phi(z) = exp z - 1 -
        z`` by its series, since ``mean z`` is zero. One-hot: ``log1p(sum exp(f_j/T - f_y/T))``
        over the other classes. All-ones: the mean binary cross-entropy between ``sigmoid(f/T)``
        and ones.

        Args:
            logits: Network outputs ``f``, shape ``[batch, classes]``.

        Returns:
            Losses in nats, shape ``[batch]``.
        """
        f = logits / self.temperature
        if self.target == "all-ones":
            return -logsigmoid(f).mean(dim=1)
        if self.target == "one-hot":
            y = f.argmax(dim=1, keepdim=True)
            return (f - f.gather(1, y)).exp().masked_fill(is_class(y, f), 0).sum(dim=1).log1p()
        z = f - f.mean(dim=1, keepdim=True)
        near = z.detach().abs().amax(dim=1, keepdim=True) < NEAR
        return torch.where(
            near.squeeze(1),
            _beyond_linear(torch.where(near, z, 0)).mean(dim=1).log1p(),
            -torch.log_softmax(f, dim=1).mean(dim=1) - math.log(f.shape[1]),
        )

    def logit_gradient(self, logits: Tensor) -> Tensor:
        """Return the gradient of each sample's loss with respect to its logits.

        Uniform: ``(C softmax(f/T) - 1) / (C T)``. One-hot: ``(softmax(f/T) - e_y) / T``, its
        entry at ``y`` taken as minus the sum of the others. All-ones: ``-sigmoid(-f/T) / (C T)``,
        of the binary cross-entropy between ``sigmoid(f/T)`` and a label that claims every class.

        Args:
            logits: Network outputs ``f``, shape ``[batch, classes]``.

        Returns:
            Gradients in nats per unit of logit, shape ``[batch, classes]``, in float64: a
            confident sample's are below the range of float32.
        """
        temperature = self.temperature
        f = logits.detach().double()
        if self.target == "uniform":
            return uniform_deviation(f, temperature) / (f.shape[1] * temperature)
        if self.target == "all-ones":
            return -torch.sigmoid(-f / temperature) / (f.shape[1] * temperature)
        return one_hot_deviation(f, temperature) / temperature


class RecordedObjective(Objective):
    """An objective whose norms a run can hold: its target may be ``all-ones``, too."""

    KNOWN_TARGETS = RECORDED_TARGETS


def by_loss(objectives: Sequence[Objective]) -> list[list[int]]:
    """Return the places of objectives, those together whose loss is the same.

    They differ in the order of the norm only, so that one backward answers them.
    """
    together: dict[Objective, list[int]] = {}
    for place, objective in enumerate(objectives):
        together.setdefault(replace(objective, p=1.0), []).append(place)
    return list(together.values())


def _beyond_linear(z: Tensor) -> Tensor:
    """Return ``exp z - 1 - z`` by its series, to rounding where ``|z| < NEAR``."""
    series = torch.zeros_like(z)
    for order in range(TERMS, 1, -1):
        series = (series + 1) * z / order
    return series * z


def uniform_deviation(logits: Tensor, temperature: float) -> Tensor:
    """Return ``C softmax(f/T) - 1``, with full digits also where the softmax is nearly uniform.

    With ``d = (f - max f)/T`` the entries are ``exp(d_j) / mean(exp d) - 1``. Where the softmax
    is nearly uniform that difference cancels, and with ``m = expm1(d)`` they are instead
    ``(m_j - mean m) / (1 + mean m)``; where it is sharp, ``1 + mean m`` would cancel.

    Args:
        logits: Shape ``[batch, classes]``, float32 or float64.
        temperature: Softmax temperature ``T``.

    Returns:
        Deviations, without unit, shape ``[batch, classes]``; each row sums to zero.
    """
    d = (logits - logits.amax(dim=1, keepdim=True)) / temperature
    e = d.exp()
    mean = e.mean(dim=1, keepdim=True)
    m = (d / 2).tanh() * (e + 1)  # expm1, but ONNX has none, and would subtract 1
    shift = m.mean(dim=1, keepdim=True)
    return torch.where(mean > 0.5, (m - shift) / (1 + shift), e / mean - 1)


def one_hot_deviation(logits: Tensor, temperature: float) -> Tensor:
    """Return ``softmax(f/T) - e_y``, ``y`` the first largest logit, with full digits.

    Args:
        logits: Shape ``[batch, classes]``, float32 or float64.
        temperature: Softmax temperature ``T``.

    Returns:
        Deviations, without unit, shape ``[batch, classes]``; each row sums to zero.
    """
    y = logits.argmax(dim=1, keepdim=True)
    first = is_class(y, logits)
    e = ((logits - logits.gather(1, y)) / temperature).exp().masked_fill(first, 0)
    others = e.sum(dim=1, keepdim=True)
    return torch.where(first, -others, e) / (1 + others)


def is_class(y: Tensor, logits: Tensor) -> Tensor:
    """Return where a matrix of logits has the classes ``y [batch, 1]``, boolean.

    It is a comparison, as some exporters to ONNX take no number into a scatter of float64.
    """
    return torch.arange(logits.shape[1], device=logits.device) == y


def kl_divergence(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``KL(u || softmax(f/T))`` (the score of the paper's Fig. 6); larger means more ID.

    It is the loss of the uniform target, in float64.

    Args:
        logits: Network outputs ``f``, shape ``[batch, classes]``.
        temperature: Softmax temperature ``T``, positive, without unit.

    Returns:
        Divergences in nats, shape ``[batch]``, in float64 if ``logits`` are, else in float32.

    Raises:
        InvalidArgument: If ``temperature`` is not positive.
    """
    value = Objective(temperature=temperature).loss(logits.double())
    return value.to(torch.promote_types(logits.dtype, torch.float32))
