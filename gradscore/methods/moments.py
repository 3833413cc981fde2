"""Mean, covariance and percentiles of rows that are seen block by block, never all at once."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from gradscore.errors import InvalidArgument

CONSTANT = 1e-6
"""A column varies where its deviation is more than this share of its mean: float32's digits."""


class Moments:
    """Mean and covariance of rows, in float64.

    Sums are of differences from the first row: a constant column has a variance of exactly 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift = self._sum = self._products = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Take in some rows, shape ``[rows, columns]``."""
        if not len(rows):
            return
        x = rows.double()
        if not self.count:
            self._shift = x[0].clone()
            self._sum = torch.zeros_like(self._shift)
            self._products = x.new_zeros(len(self._shift), len(self._shift))
        x = x - self._shift
        self._sum += x.sum(dim=0)
        self._products += x.T @ x
        self.count += len(x)

    @property
    def mean(self) -> Tensor:
        """Mean of each column, shape ``[columns]``."""
        return self._shift + self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """Maximum-likelihood covariance (``1/n``), shape ``[columns, columns]``."""
        offset = self._sum / self.count
        return self._products / self.count - offset.outer(offset)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of each column (``1/n``), 0 where it never varies, ``[columns]``."""
        deviation = self.covariance.diagonal().clamp_min(0).sqrt()
        return torch.where(deviation > CONSTANT * self.mean.abs(), deviation, 0)


def shrunk(correlation: Tensor, fourth: float, count: int) -> Tensor:
    """Return the covariance of Ledoit & Wolf (2004): drawn towards a multiple of the identity.

    Args:
        correlation: Maximum-likelihood covariance of the rows, shape ``[columns, columns]``.
        fourth: Mean over the rows of the squared norm's square.
        count: Number of rows.

    Returns:
        Shape ``[columns, columns]``, positive definite unless all rows are equal.
    """
    columns = len(correlation)
    mean_variance = correlation.diagonal().mean()
    square = correlation.square().sum()
    distance = square - columns * mean_variance.square()
    spread = torch.minimum((fourth - square) / count, distance)
    share = float(spread / distance) if distance > 0 and spread > 0 else 0.0
    target = mean_variance * torch.eye(columns, dtype=correlation.dtype)
    return (1 - share) * correlation + share * target


def inverse_root(covariance: Tensor) -> Tensor:
    """Return ``R`` with ``C^-1 = R R^T``, so that ``|x R|`` is the distance under ``C``.

    Raises:
        InvalidArgument: If the covariance is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if failed:
        raise InvalidArgument("Expected rows that vary in every direction, got others.")
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    return torch.linalg.solve_triangular(factor, identity, upper=False).T


def percentile(blocks: Callable[[], Iterable[Tensor]], percent: float) -> float:
    """Return a percentile of all float32 entries, exactly, in two readings.

    The bits of floats, read as whole numbers, order as the floats do. The first reading counts
    the upper half of the bits, the second the lower half where the percentile lies. Between two
    neighbours it interpolates, as NumPy does.

    Args:
        blocks: Gives the entries, in blocks of any shape.
        percent: 0 to 100.

    Raises:
        InvalidArgument: If there is no entry.
    """
    upper = torch.zeros(1 << 16, dtype=torch.long)
    for block in blocks():
        upper += torch.bincount(_ordered(block) >> 16, minlength=1 << 16)
    count = int(upper.sum())
    if not count:
        raise InvalidArgument("Expected entries to take a percentile of, got none.")
    rank = (count - 1) * percent / 100
    ranks = [int(rank), min(int(rank) + 1, count - 1)]
    ends = upper.cumsum(0)
    places = [int(torch.searchsorted(ends, r, right=True)) for r in ranks]
    lower = {place: torch.zeros(1 << 16, dtype=torch.long) for place in places}
    for block in blocks():
        bits = _ordered(block)
        for place, counts in lower.items():
            inside = bits[(bits >> 16) == place] & 0xFFFF
            counts += torch.bincount(inside, minlength=1 << 16)
    values = []
    for r, place in zip(ranks, places, strict=True):
        before = int(ends[place] - upper[place])
        last = int(torch.searchsorted(lower[place].cumsum(0), r - before, right=True))
        values.append(_value((place << 16) + last))
    low, high = values
    return low + (high - low) * (rank - ranks[0])


def _ordered(block: Tensor) -> Tensor:
    """Return whole numbers of 32 bits that order as the floats do, shape ``[entries]``, int64."""
    bits = block.float().flatten().contiguous().view(torch.int32).long() & 0xFFFFFFFF
    negative = bits >> 31 == 1
    return torch.where(negative, 0xFFFFFFFF - bits, bits + (1 << 31))


def _value(ordered: int) -> float:
    """Return the float that :func:`_ordered` made the number of."""
    bits = ordered - (1 << 31) if ordered >> 31 else 0xFFFFFFFF - ordered
    signed = bits - (1 << 32) if bits >> 31 else bits
    return float(torch.tensor(signed, dtype=torch.int32).view(torch.float32))
