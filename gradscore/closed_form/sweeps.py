"""Many settings of the same rows at once, as the sweeps over p and T need them.

A sweep costs little more than one norm where the orders share their powers: whole orders are
products of smaller ones, fractions share one logarithm.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from gradscore.closed_form.blockwise import deviation_norm, feature_norm
from gradscore.closed_form.plain import row_blocks
from gradscore.objective import Objective, one_hot_deviation

PLAIN_ORDERS = frozenset({1.0, 2.0, math.inf})
"""Orders that the row blocks answer by themselves faster than powers do."""


def feature_norms(features: Tensor, orders: Sequence[float]) -> Tensor:
    """Return ``|x|_p`` of each row for each order, shape ``[orders, batch]``, float64.

    Args:
        features: Shape ``[batch, in_features]``, floating point.
        orders: Orders of the norm, positive.
    """
    found = _norms_of_orders(features, set(orders) - PLAIN_ORDERS)
    for p in PLAIN_ORDERS & set(orders):
        found[p] = feature_norm(features, p).double()
    return torch.stack([found[p] for p in orders])


def deviation_norms(logits: Tensor, objectives: Sequence[Objective]) -> Tensor:
    """Return V of each row for each setting, shape ``[objectives, batch]``, float64.

    Args:
        logits: Network outputs ``f``, shape ``[batch, classes]``.
        objectives: What is asked for; those of one temperature and target share their deviations.
    """
    found: dict[Objective, Tensor] = {}
    for t, target in {(asked.temperature, asked.target) for asked in objectives}:
        alike = {
            asked.p: asked
            for asked in objectives
            if (asked.temperature, asked.target) == (t, target)
        }
        for p in PLAIN_ORDERS & set(alike):
            found[alike[p]] = deviation_norm(logits, alike[p], torch.float64)
        norms = _deviation_norms(logits, set(alike) - PLAIN_ORDERS, t, target)
        found |= {alike[p]: norm for p, norm in norms.items()}
    return torch.stack([found[asked] for asked in objectives])


def _norms_of_orders(rows: Tensor, orders: Iterable[float]) -> dict[float, Tensor]:
    """Return the L_p norm of each row for each order.

    Args:
        rows: Shape ``[batch, entries]``, float32 or float64.
        orders: Positive and finite orders. Those of at least 1 are computed in float32 from the
            entries scaled by their largest, others in the type of ``rows``.

    Returns:
        ``order -> norms [batch]``, float64.
    """
    orders = sorted(set(orders))
    parts = [_block_norms(block, orders) for block in row_blocks(rows)] if orders else []
    return {p: torch.cat([part[p] for part in parts]) for p in orders}


def _deviation_norms(
    logits: Tensor, orders: Iterable[float], temperature: float, target: str
) -> dict[float, Tensor]:
    """Return ``|1 - C softmax(f/T)|_p`` for each order, or its one-hot counterpart.

    The deviations are taken in float64, where the plain formula keeps enough digits for every
    temperature and for the entries near zero that orders below 1 magnify.

    Args:
        logits: Network outputs ``f``, shape ``[batch, classes]``.
        orders: Positive and finite orders.
        temperature: Softmax temperature ``T``, positive.
        target: ``uniform`` or ``one-hot``.

    Returns:
        ``order -> norms [batch]``, float64, without unit.
    """
    deviation: Callable[[Tensor, float], Tensor]
    deviation = _uniform_deviation if target == "uniform" else one_hot_deviation
    orders = sorted(set(orders))
    blocks = row_blocks(logits) if orders else []
    parts = [_block_norms(deviation(f.double(), temperature), orders) for f in blocks]
    return {p: torch.cat([part[p] for part in parts]) for p in orders}


def _uniform_deviation(logits: Tensor, temperature: float) -> Tensor:
    e = (logits - logits.amax(dim=1, keepdim=True)).div_(temperature).exp_()
    return e.div_(e.mean(dim=1, keepdim=True)).sub_(1)


def _block_norms(rows: Tensor, orders: list[float]) -> dict[float, Tensor]:
    magnitude = rows.abs()
    largest = magnitude.amax(dim=1)
    scale = torch.where(largest > 0, largest, 1)[:, None]
    magnitude /= scale
    single = magnitude.float()
    powers = {1.0: single}
    logarithm = None
    result = {}
    for p in orders:
        if p.is_integer() and p <= 64:
            entries = _whole_power(powers, p)
        elif p == 0.5:
            entries = magnitude.sqrt()
        elif p < 1:
            logarithm = magnitude.log() if logarithm is None else logarithm
            entries = (logarithm * p).exp_()
        else:
            entries = single.pow(p)
        result[p] = entries.sum(dim=1).double().pow_(1 / p).mul_(scale[:, 0])
    return result


def _whole_power(powers: dict[float, Tensor], p: float) -> Tensor:
    """Return the power ``p`` from smaller ones, kept in ``powers``."""
    if p not in powers:
        half = _whole_power(powers, p // 2)
        square = half * half
        powers[p] = square.mul_(powers[1.0]) if p % 2 else square
    return powers[p]
