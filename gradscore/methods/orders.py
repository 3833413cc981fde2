"""Many L_p norms of the same rows at once, as the sweeps over p and T need them.

A sweep costs little more than one norm where the orders share their powers: whole orders are
products of smaller ones, fractions share one logarithm.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gradscore.objective import one_hot_deviation

BLOCK_ENTRIES = 1 << 17
"""Entries worked on at once: what the outer cache holds. Smaller blocks wake the second thread
more often, and each wake-up can cost a time slice where other processes keep the cores busy."""


def norms_of_orders(rows: Tensor, orders: Iterable[float]) -> dict[float, Tensor]:
    """Return the L_p norm of each row for each order.

    Args:
        rows: Shape ``[batch, entries]``, float32 or float64.
        orders: Positive orders, infinity included. Orders of at least 1 are computed in float32
            from the entries scaled by their largest, others in the type of ``rows``.

    Returns:
        ``order -> norms [batch]``, float64.
    """
    parts = [_block_norms(block, sorted(set(orders))) for block in row_blocks(rows)]
    return {p: torch.cat([part[p] for part in parts]) for p in parts[0]} if parts else {}


def deviation_norms(
    logits: Tensor, orders: Iterable[float], temperature: float, target: str
) -> dict[float, Tensor]:
    """Return ``|1 - C softmax(f/T)|_p`` for each order, or its one-hot counterpart.

    The deviations are taken in float64, where the plain formula keeps enough digits for every
    temperature and for the entries near zero that orders below 1 magnify.

    Args:
        logits: Network outputs ``f``, shape ``[batch, classes]``.
        orders: Positive orders, infinity included.
        temperature: Softmax temperature ``T``, positive.
        target: ``uniform`` or ``one-hot``.

    Returns:
        ``order -> norms [batch]``, float64, without unit.
    """
    deviation: Callable[[Tensor, float], Tensor]
    deviation = _uniform_deviation if target == "uniform" else one_hot_deviation
    orders = sorted(set(orders))
    parts = [_block_norms(deviation(f.double(), temperature), orders) for f in row_blocks(logits)]
    return {p: torch.cat([part[p] for part in parts]) for p in orders}


def _uniform_deviation(logits: Tensor, temperature: float) -> Tensor:
    e = (logits - logits.amax(dim=1, keepdim=True)).div_(temperature).exp_()
    return e.div_(e.mean(dim=1, keepdim=True)).sub_(1)


def row_blocks(rows: Tensor) -> Iterable[Tensor]:
    """Split a matrix into blocks of rows whose temporaries stay in the outer cache."""
    return rows.split(max(1, BLOCK_ENTRIES // max(1, rows.shape[1])))


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
        if p == float("inf"):
            result[p] = largest.double()
            continue
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
