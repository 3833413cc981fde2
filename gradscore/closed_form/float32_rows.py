"""Norms of rows' deviations in float32, for orders 1, 2 and infinity: compiled loops.

Some rows take each step together: what one waits for, a processor fills with the others.

Sums of 512 entries are added up in float64, and the largest class is left out of them: its 1 would
swallow the others of a confident row. Small deviations are computed around the row's mean by
``exp - 1``, which subtracts nothing. What float32 cannot hold is left to float64.
"""

import math

import numpy as np

from gradscore.closed_form.elementary import (
    F,
    compiled,
    exp32_less_one,
    exp32_of_many,
    inlined,
    prefetch,
    scaled,
)
from gradscore.closed_form.row_norms import PART
from gradscore.closed_form.vectors import (
    any_of,
    first,
    fma,
    larger,
    largest_of,
    load,
    load_some,
    not_below,
    select,
    smaller,
    smallest_of,
    spread,
    store,
    total_of,
)

WIDE = 64
"""Entries that take each step together: four registers of AVX-512, that none has to wait."""

NEAR = 0.5
"""Below this power mean of the deviations, subtracting 1 costs float32 its digits."""

LEAST_NORM, LEAST_OTHERS, LEAST_ROOT = 1e-15, 1e-28, 1e-15
"""Smaller norms, shares of the other classes, and roots of their squares are left to float64."""

FACTS = 5
"""Numbers that are kept of a row: its ends, how many are the largest, a sum, and whether near."""


@inlined
def entries(x, j, other):
    """Return the entries of ``x`` from ``j`` on; behind the last one, ``other``."""
    n = len(x) - j
    if n < WIDE:
        return load_some(x, j, first(n, WIDE), F(other))
    return load(x, j, WIDE)


@compiled
def extremes(row):
    """Return the smallest and the largest entry, as if NaN were none."""
    low, top = spread(F(math.inf), WIDE), spread(F(-math.inf), WIDE)
    whole = len(row) // WIDE * WIDE
    for j in range(0, whole, WIDE):
        value = load(row, j, WIDE)
        low, top = smaller(value, low), larger(value, top)
    if whole < len(row):
        rest = first(len(row) - whole, WIDE)
        low = smaller(load_some(row, whole, rest, F(math.inf)), low)
        top = larger(load_some(row, whole, rest, F(-math.inf)), top)
    return np.float64(smallest_of(low)), np.float64(largest_of(top))


@compiled
def exponentiate(row, following, top, how, e):
    """Fill ``e``, zero at the largest classes; return their number, and the sum of the others.

    While the processor is busy with it, the next row is fetched.
    """
    total, ties = 0.0, 0.0
    for start in range(0, len(row), PART):
        some, largest = spread(F(0), WIDE), spread(F(0), WIDE)
        part = row[: min(start + PART, len(row))]
        for j in range(start, len(part), WIDE):
            prefetch(following, j, WIDE)
            d = entries(part, j, -math.inf) - F(top)
            value = exp32_of_many(d, how)
            at_top = not_below(d, F(0))
            if any_of(at_top):
                value = select(at_top, d, value)
                largest = select(at_top, largest + F(1), largest)
            store(e, j, value)
            some = some + value
        total += total_of(some)
        ties += total_of(largest)
    return ties, total


@compiled
def less_one(row, following, centre, how, e):
    """Fill ``e`` with ``exp((row - centre) / T) - 1``, and return its sum."""
    total = 0.0
    for start in range(0, len(row), PART):
        some = spread(F(0), WIDE)
        part = row[: min(start + PART, len(row))]
        for j in range(start, len(part), WIDE):
            prefetch(following, j, WIDE)
            value = exp32_less_one(entries(part, j, centre) - centre, how)
            store(e, j, value)
            some = some + value
        total += total_of(some)
    return total


@compiled
def mean_of(row):
    """Return the mean of a row."""
    total = 0.0
    for start in range(0, len(row), PART):
        some, part = spread(F(0), WIDE), row[: min(start + PART, len(row))]
        for j in range(start, len(part), WIDE):
            some = some + entries(part, j, 0.0)
        total += total_of(some)
    return total / len(row)


@compiled
def excess(e, one, centre):
    """Return what all entries exceed ``centre`` by.

    Multiplying by one, which the compiler must not know, subtracts in a unit that would idle.
    """
    total = 0.0
    for start in range(0, len(e), PART):
        some = spread(F(0), WIDE)
        for j in range(start, min(start + PART, len(e)), WIDE):
            some = some + larger(fma(load(e, j, WIDE), one, -centre), F(0))
        total += total_of(some)
    return total


@compiled
def squares(e, centre):
    """Return the sum of squares of all entries, less ``centre``."""
    total = 0.0
    for start in range(0, len(e), PART):
        some = spread(F(0), WIDE)
        for j in range(start, min(start + PART, len(e)), WIDE):
            value = load(e, j, WIDE) - centre
            some = fma(value, value, some)
        total += total_of(some)
    return total


@compiled
def centred32(row, following, centre, ends, how, orders, found, e):
    """Norms of deviations that are small, around ``centre``: ``exp - 1`` subtracts nothing."""
    mean = less_one(row, following, F(centre), how, e) / len(row)
    for j in range(len(row), len(e)):
        e[j] = mean
    for k in range(len(orders)):
        if orders[k] == 1:
            norm = 2 * excess(e, how[3], F(mean))
        elif orders[k] == 2:
            norm = math.sqrt(squares(e, F(mean)))
        elif orders[k] == math.inf:
            norm = max(math.expm1(ends[1]) - mean, mean - math.expm1(ends[0]))
        else:
            continue
        found[k] = norm / (1 + mean) if norm > LEAST_NORM else -1.0


@inlined
def far_norm(e, n, p, ties, mean, lowest, one):
    """Norm of deviations that are not small, of which ``e`` is zero at the largest classes."""
    if p == 1:  # deviations sum to zero: those above it are half
        return 2 * (ties * (1 - mean) + excess(e, one, F(mean))) / mean
    if p == 2:
        return math.sqrt(max((ties + squares(e, F(0))) / mean**2 - n, 0.0))
    return max(1 / mean - 1, 1 - math.exp(lowest) / mean)


@compiled
def uniform32(rows, following, temperature, how, orders, found, e, facts):
    """Norms of ``C softmax(f/T) - 1``, or -1 where float32 is not enough."""
    n = rows.shape[1]
    low, top, ties, mean, near = facts[0], facts[1], facts[2], facts[3], facts[4]
    for r in range(len(rows)):
        mean[r], near[r] = 0.0, 1.0
        if top[r] - low[r] > temperature:
            ties[r], mean[r] = exponentiate(rows[r], following[r], top[r], how, e[r])
            mean[r], near[r] = (ties[r] + mean[r]) / n, 0.0
    for k in range(len(orders)):
        p = orders[k]
        if p not in (1.0, 2.0, math.inf):
            continue
        small = NEAR * (n if p == 1 else math.sqrt(n) if p == 2 else 1.0)
        for r in range(len(rows)):
            if mean[r] > 0:
                lowest = (low[r] - top[r]) / temperature
                found[k, r] = far_norm(e[r], n, p, ties[r], mean[r], lowest, how[3])
                near[r] = 1.0 if found[k, r] < small else near[r]
    for r in range(len(rows)):
        if near[r] > 0:
            far = mean[r] > 0
            centre = top[r] + temperature * math.log(mean[r]) if far else mean_of(rows[r])
            ends = (low[r] - F(centre)) / temperature, (top[r] - F(centre)) / temperature
            centred32(rows[r], following[r], centre, ends, how, orders, found[:, r], e[r])


@compiled
def one_hot32(rows, following, how, orders, found, e, facts):
    """Norms of ``softmax(f/T) - e_y``, or -1 where float32 is not enough."""
    top, ties, others = facts[1], facts[2], facts[3]
    for r in range(len(rows)):
        ties[r], others[r] = exponentiate(rows[r], following[r], top[r], how, e[r])
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
        following: Those of the rows to come, as many.
        temperature: One that :func:`fits_float32` takes.
        one_hot: Whether the target is one-hot.
        orders: Of the norms.
        found: What is filled, ``[orders, rows]``.
        e: Overwritten, ``[rows, at least classes]``, float32, whole vectors of them.
        facts: Overwritten, ``[FACTS, rows]``, float64.
    """
    how = scaled(temperature)
    for r in range(len(rows)):
        facts[0, r], facts[1, r] = extremes(rows[r])
    if one_hot:
        one_hot32(rows, following, how, orders, found, e, facts)
    else:
        uniform32(rows, following, temperature, how, orders, found, e, facts)
