"""Norms of rows' deviations in float32, for orders 1, 2 and infinity: compiled loops.

Some rows take each step together: what one waits for, a processor fills with the others.

Sums of 512 entries are added up in float64, and the largest class is left out of them: its 1 would
swallow the others of a confident row. Small deviations are computed around the row's mean by
``exp - 1``, which subtracts nothing. What float32 cannot hold is left to float64.
"""

import math

import numpy as np

from gradscore.closed_form.elementary import (
    BITS,
    F,
    both_exp32,
    compiled,
    inlined,
    prefetch,
    reinterpret,
    scaled,
    summed,
)
from gradscore.closed_form.row_norms import PART

NEAR = 0.5
"""Below this power mean of the deviations, subtracting 1 costs float32 its digits."""

LEAST_NORM, LEAST_OTHERS, LEAST_ROOT = 1e-15, 1e-28, 1e-15
"""Smaller norms, shares of the other classes, and roots of their squares are left to float64."""

FACTS = 5
"""Numbers that are kept of a row: its ends, how many are the largest, a sum, and whether near."""

LONG = 4096
"""Fewest entries of a row while whose exponentials are computed the next is fetched."""


@inlined
def key(bits):
    """Return a whole number that is larger the larger the float of these bits; its own inverse."""
    return BITS(bits ^ ((bits >> BITS(31)) & BITS(0x7FFFFFFF)))


@inlined
def extremes(row):
    """Return the smallest and the largest entry; NaN is larger than any."""
    most = least = key(reinterpret(F(row[0])))
    for j in range(len(row)):
        value = key(reinterpret(F(row[j])))
        most = value if value > most else most
        least = value if value < least else least
    return np.float64(reinterpret(key(least))), np.float64(reinterpret(key(most)))


@summed
def exponentials32(f, top, how, e):
    """Fill ``e``, zero at the largest class; return its sum and the number of other classes."""
    total, others = F(0), F(0)
    for j in range(len(e)):
        d = F(f[j]) - top
        other = F(1) if d < F(0) else F(0)
        value = both_exp32(d, how)[0] * other
        e[j] = value
        total += value
        others += other
    return total, others


@summed
def less_one(f, centre, how, e):
    """Fill ``e`` with ``exp((f - centre) / T) - 1``, and return its sum."""
    total = F(0)
    for j in range(len(e)):
        e[j] = both_exp32(F(f[j]) - centre, how)[1]
        total += e[j]
    return total


@summed
def sum_of_part(e):
    """Return the sum of one part."""
    total = F(0)
    for j in range(len(e)):
        total += e[j]
    return total


@summed
def above(e, centre):
    """Return what the entries of one part exceed ``centre`` by, in all."""
    total = F(0)
    for j in range(len(e)):
        value = e[j] - centre
        total += value if value > F(0) else F(0)
    return total


@summed
def squares_of_part(e, centre):
    """Return the sum of squares of one part, less ``centre``."""
    total = F(0)
    for j in range(len(e)):
        value = e[j] - centre
        total += value * value
    return total


@compiled
def excess(e, centre):
    """Return what all entries exceed ``centre`` by."""
    total = 0.0
    for start in range(0, len(e), PART):
        total += above(e[start : start + PART], centre)
    return total


@compiled
def squares(e, centre):
    """Return the sum of squares of all entries, less ``centre``."""
    total = 0.0
    for start in range(0, len(e), PART):
        total += squares_of_part(e[start : start + PART], centre)
    return total


@compiled
def exponentiate(row, following, top, how, e):
    """Return how many classes are the largest, and the sum of the others, that one being 1."""
    n, total, others = len(row), 0.0, 0.0
    for start in range(0, n, PART):
        stop = min(start + PART, n)
        if n >= LONG:
            prefetch(following[start:stop])
        part = exponentials32(row[start:stop], F(top), how, e[start:stop])
        total += part[0]
        others += part[1]
    return n - others, total


@compiled
def mean_of(row):
    """Return the mean of a row."""
    total = 0.0
    for start in range(0, len(row), PART):
        total += sum_of_part(row[start : start + PART])
    return total / len(row)


@compiled
def centred32(row, centre, ends, how, orders, found, e):
    """Norms of deviations that are small, around ``centre``: ``exp - 1`` subtracts nothing."""
    n, mean = len(row), 0.0
    for start in range(0, n, PART):
        stop = min(start + PART, n)
        mean += less_one(row[start:stop], F(centre), how, e[start:stop])
    mean /= n
    for k in range(len(orders)):
        if orders[k] == 1:
            norm = 2 * excess(e, F(mean))
        elif orders[k] == 2:
            norm = math.sqrt(squares(e, F(mean)))
        elif orders[k] == math.inf:
            norm = max(math.expm1(ends[1]) - mean, mean - math.expm1(ends[0]))
        else:
            continue
        found[k] = norm / (1 + mean) if norm > LEAST_NORM else -1.0


@inlined
def far_norm(e, p, ties, mean, lowest):
    """Norm of deviations that are not small, of which ``e`` is zero at the largest classes."""
    if p == 1:  # deviations sum to zero: those above it are half
        return 2 * (ties * (1 - mean) + excess(e, F(mean))) / mean
    if p == 2:
        return math.sqrt(max((ties + squares(e, F(0))) / mean**2 - len(e), 0.0))
    return max(1 / mean - 1, 1 - math.exp(lowest) / mean)


@compiled
def uniform32(rows, following, temperature, how, orders, found, e, facts):
    """Norms of ``C softmax(f/T) - 1``, or -1 where float32 is not enough."""
    n = rows.shape[1]
    low, top, ties, mean, near = facts[0], facts[1], facts[2], facts[3], facts[4]
    for r in range(len(rows)):
        mean[r], near[r] = 0.0, 1.0
        if top[r] - low[r] > temperature:
            ties[r], mean[r] = exponentiate(rows[r], following, top[r], how, e[r])
            mean[r], near[r] = (ties[r] + mean[r]) / n, 0.0
    for k in range(len(orders)):
        p = orders[k]
        if p not in (1.0, 2.0, math.inf):
            continue
        small = NEAR * (n if p == 1 else math.sqrt(n) if p == 2 else 1.0)
        for r in range(len(rows)):
            if mean[r] > 0:
                lowest = (low[r] - top[r]) / temperature
                found[k, r] = far_norm(e[r], p, ties[r], mean[r], lowest)
                near[r] = 1.0 if found[k, r] < small else near[r]
    for r in range(len(rows)):
        if near[r] > 0:
            far = mean[r] > 0
            centre = top[r] + temperature * math.log(mean[r]) if far else mean_of(rows[r])
            ends = (low[r] - F(centre)) / temperature, (top[r] - F(centre)) / temperature
            centred32(rows[r], centre, ends, how, orders, found[:, r], e[r])


@compiled
def one_hot32(rows, following, how, orders, found, e, facts):
    """Norms of ``softmax(f/T) - e_y``, or -1 where float32 is not enough."""
    top, ties, others = facts[1], facts[2], facts[3]
    for r in range(len(rows)):
        ties[r], others[r] = exponentiate(rows[r], following, top[r], how, e[r])
        others[r] += ties[r] - 1  # in units of the largest class
    for k in range(len(orders)):
        for r in range(len(rows)):
            if orders[k] == 2:
                norm = math.sqrt(others[r] ** 2 + (ties[r] - 1) + squares(e[r], F(0)))
                found[k, r] = norm / (1 + others[r]) if norm > LEAST_ROOT else -1.0
            elif orders[k] in (1.0, math.inf):
                norm = 2 * others[r] if orders[k] == 1 else others[r]
                found[k, r] = norm / (1 + others[r]) if others[r] > LEAST_OTHERS else -1.0


@compiled
def deviation_norms32(rows, following, temperature, one_hot, orders, found, e, facts):
    """Fill ``found`` where float32 is enough, and leave what is below zero elsewhere.

    Args:
        rows: Logits, ``[rows, classes]``.
        following: Those of the row to come.
        temperature: One that :func:`fits_float32` takes.
        one_hot: Whether the target is one-hot.
        orders: Of the norms.
        found: What is filled, ``[orders, rows]``.
        e: Overwritten, ``[rows, classes]``, float32.
        facts: Overwritten, ``[FACTS, rows]``, float64.
    """
    how = scaled(temperature)
    for r in range(len(rows)):
        facts[0, r], facts[1, r] = extremes(rows[r])
    if one_hot:
        one_hot32(rows, following, how, orders, found, e, facts)
    else:
        uniform32(rows, following, temperature, how, orders, found, e, facts)
