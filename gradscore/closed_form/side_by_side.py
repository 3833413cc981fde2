"""Norms of the deviations of rows with few classes, 64 rows at once, in float32: compiled loops.

The vector units would idle along such a row, so that the rows lie side by side. Of each entry both
``exp z`` and ``exp z - 1`` are computed, from one polynomial, and each row takes the one that
keeps its digits: nothing branches. What float32 cannot hold is left to float64.
"""

import math

import numpy as np

from gradscore.closed_form.elementary import (
    F,
    both_exp32,
    compiled,
    fill,
    inlined,
    scaled,
    summed,
    transpose16,
)
from gradscore.closed_form.float32_rows import LEAST_NORM, LEAST_OTHERS, LEAST_ROOT

LANES = 64

NARROW = 32
"""Most classes for which this is faster, and for which the largest is a good centre."""

SPACE, SQUARE = 7, 16
"""Rows of lanes that are needed beside three of them a class; entries that are moved at once."""

HALF = F(0.5)
"""Above this mean of ``exp z``, 1 being the largest, ``exp z - 1`` keeps the digits."""


@compiled
def prepare(f, first, columns):
    """Lay rows from ``first`` on side by side in ``columns [classes, LANES]``.

    Sixteen entries are taken at once: of the next rows too, where there are some, and what they
    leave below the columns is to be overwritten.
    """
    rows, n = f.shape
    if first * n + (LANES - 1) * n + -(-n // SQUARE) * SQUARE <= f.size:
        for k in range(0, LANES, SQUARE):
            for j in range(0, n, SQUARE):
                transpose16(f, (first + k) * n + j, n, columns, j * LANES + k, LANES)
    else:
        for k in range(min(LANES, rows - first)):
            for j in range(n):
                columns[j, k] = f[first + k, j]


@inlined
def raise_to(f, top):
    """Raise ``top`` to ``f`` where that is larger."""
    for k in range(LANES):
        top[k] = f[k] if f[k] > top[k] else top[k]


@inlined
def exponentials(f, top, how, e, less, sums):
    """Fill ``e``, zero for a largest class, and ``less``, ``exp z - 1``; add both up."""
    ties, others, shift = sums[0], sums[1], sums[2]
    for k in range(LANES):
        d = f[k] - top[k]
        other = F(1) if d < F(0) else F(0)
        value, value_less = both_exp32(d, how)
        value *= other
        e[k], less[k] = value, value_less
        ties[k] += F(1) - other
        others[k] += value
        shift[k] += value_less


@inlined
def choose(sums, n, centre, squared):
    """Fill in the means of ``exp z``, of what is chosen for a row, and the centres of squares.

    Far from uniform squares are around zero: around the mean, a confident row's would be rounded.
    """
    ties, others, shift, mean = sums[0], sums[1], sums[2], sums[3]
    for k in range(LANES):
        mean[k] = (ties[k] + others[k]) / n
        near, far = shift[k] / n, mean[k]
        centre[k] = near if mean[k] > HALF else far
        squared[k] = near if mean[k] > HALF else F(0)


@summed
def accumulate(e, less, mean, centre, p, total):
    """Add what exceeds the centre or the squares, or take the larger magnitude."""
    for k in range(LANES):
        d = (less[k] if mean[k] > HALF else e[k]) - centre[k]
        if p == 1:
            total[k] += np.float64(max(d, F(0)))
        elif p == 2:
            total[k] += np.float64(d) * np.float64(d)
        else:
            total[k] = max(total[k], np.float64(abs(d)))


@compiled
def finish_uniform(total, sums, n, p, found):
    """Turn sums over classes into norms; -1 where float32 was too small.

    Far from uniform the largest classes, 1 each, are still missing in the sums.
    """
    ties, others = sums[0], sums[1]
    for k in range(LANES):
        mean, norm = (np.float64(ties[k]) + np.float64(others[k])) / n, total[k]
        far = sums[3, k] <= HALF
        if p == 1:
            norm = 2 * (norm + (ties[k] * (1 - mean) if far else 0.0))
        elif p == 2:
            norm = math.sqrt(norm + ties[k] - n * mean * mean if far else norm)
        else:
            norm = max(norm, 1 - mean if far else 0.0)
        found[k] = -1.0 if norm <= LEAST_NORM else norm / mean


@compiled
def finish_one_hot(total, sums, p, found):
    """Likewise; the entry of the largest class is minus the sum of all others."""
    ties, others = sums[0], sums[1]
    for k in range(LANES):
        rest = np.float64(ties[k]) - 1 + np.float64(others[k])
        norm, least = rest, LEAST_OTHERS
        if p == 1:
            norm = 2 * rest
        elif p == 2:
            norm = math.sqrt(rest * rest + (ties[k] - 1) + total[k])
            least = LEAST_ROOT
        found[k] = -1.0 if norm <= least else norm / (1 + rest)


@compiled
def norms_side_by_side(work, n, temperature, one_hot, orders, found, total):
    """Fill ``found [orders, LANES]``, with -1 where the order or the digits need another way.

    Args:
        work: ``[3 n + SPACE, LANES]``: the logits of ``n`` classes, and what is overwritten.
        n: Number of classes.
        temperature: Softmax temperature.
        one_hot: Whether the target is one-hot.
        orders: Of the norms.
        found: What is filled.
        total: Overwritten, ``[LANES]``, float64.
    """
    columns, e, less, rest = work[:n], work[n : 2 * n], work[2 * n : 3 * n], work[3 * n :]
    how = scaled(temperature)
    top, centre, squared, sums = rest[0], rest[1], rest[2], rest[3:7]
    top[:] = columns[0]
    for j in range(1, n):
        raise_to(columns[j], top)
    sums[:] = F(0)
    for j in range(n):
        exponentials(columns[j], top, how, e[j], less[j], sums)
    centre[:], squared[:] = F(0), F(0)
    if not one_hot:
        choose(sums, F(n), centre, squared)
    for s in range(len(orders)):
        if orders[s] in (1.0, 2.0, math.inf):
            fill(total, 0.0)
            for j in range(n):
                around = squared if orders[s] == 2 else centre
                accumulate(e[j], less[j], sums[3], around, orders[s], total)
            if one_hot:
                finish_one_hot(total, sums, orders[s], found[s])
            else:
                finish_uniform(total, sums, n, orders[s], found[s])
        else:
            found[s] = -1.0
