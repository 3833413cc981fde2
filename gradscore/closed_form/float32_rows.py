"""Norms of a row's deviations in float32, for orders 1, 2 and infinity: compiled loops.

Sums of 512 entries are added up in float64, and the largest class is left out of them: its 1 would
swallow the others of a confident row. Small deviations are computed around the row's mean by
``exp - 1``, which subtracts nothing. The end of a row is padded to whole vectors: a single entry
costs as much as a vector of them. What float32 cannot hold is left to float64.
"""

import math

import numpy as np

from gradscore.closed_form.elementary import (
    BITS,
    F,
    both_exp32,
    compiled,
    fill,
    inlined,
    reinterpret,
    scaled,
    summed,
)
from gradscore.closed_form.row_norms import PART

VECTOR = 64

NEAR = 0.5
"""Below this power mean of the deviations, subtracting 1 costs float32 its digits."""

LEAST_NORM, LEAST_OTHERS, LEAST_ROOT = 1e-15, 1e-28, 1e-15
"""Smaller norms, shares of the other classes, and roots of their squares are left to float64."""


@inlined
def key(bits):
    """Return a whole number that is larger the larger the float of these bits; its own inverse."""
    return BITS(bits ^ ((bits >> BITS(31)) & BITS(0x7FFFFFFF)))


@inlined
def copy(source, target):
    """Copy to the beginning of ``target``, in float32."""
    for j in range(len(source)):
        target[j] = F(source[j])


@inlined
def extremes(x, most, least):
    """Return the largest and smallest of two keys and those of ``x``; NaN is the largest."""
    for j in range(len(x)):
        value = key(reinterpret(F(x[j])))
        most = value if value > most else most
        least = value if value < least else least
    return most, least


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


@compiled
def less_one(f, centre, how, e):
    """Fill ``e`` with ``exp((f - centre) / T) - 1``."""
    for j in range(len(e)):
        e[j] = both_exp32(F(f[j]) - centre, how)[1]


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
def in_parts(e, kind, centre):
    """Return the sum (kind 0), what is above ``centre`` (1) or the squares (2) of all parts."""
    total = 0.0
    for start in range(0, len(e), PART):
        part = e[start : start + PART]
        if kind == 0:
            total += sum_of_part(part)
        elif kind == 1:
            total += above(part, centre)
        else:
            total += squares_of_part(part, centre)
    return total


@compiled
def exponentiate(body, tail, n, top, how, e):
    """Return how many classes are the largest, and the sum of the others, that one being 1."""
    total, others = 0.0, n - float(len(e))  # what pads the row is no class
    for start in range(0, len(body), PART):
        stop = min(start + PART, len(body))
        part = exponentials32(body[start:stop], F(top), how, e[start:stop])
        total += part[0]
        others += part[1]
    if len(tail):
        part = exponentials32(tail, F(top), how, e[len(body) :])
        total += part[0]
        others += part[1]
    return n - others, total


@compiled
def mean_of(body, tail, n):
    """Return the mean of a row of ``n`` entries."""
    total = 0.0
    for start in range(0, min(n, len(body)), PART):
        total += sum_of_part(body[start : min(start + PART, n)])
    return (total + sum_of_part(tail[: max(0, n - len(body))])) / n


@compiled
def centred32(body, tail, n, centre, ends, how, orders, found, e):
    """Norms of deviations that are small, around ``centre``: ``exp - 1`` subtracts nothing."""
    less_one(body, F(centre), how, e[: len(body)])
    less_one(tail, F(centre), how, e[len(body) :])
    fill(e[n:], F(0))
    mean = in_parts(e, 0, F(0)) / n
    fill(e[n:], F(mean))
    for k in range(len(orders)):
        if orders[k] == 1:
            norm = 2 * in_parts(e, 1, F(mean))
        elif orders[k] == 2:
            norm = math.sqrt(in_parts(e, 2, F(mean)))
        elif orders[k] == math.inf:
            norm = max(math.expm1(ends[1]) - mean, mean - math.expm1(ends[0]))
        else:
            continue
        found[k] = norm / (1 + mean) if norm > LEAST_NORM else -1.0


@compiled
def uniform32(body, tail, n, ends, temperature, how, orders, found, e):
    """Norms of ``C softmax(f/T) - 1``, or -1 where float32 is not enough."""
    low, top = ends
    near = flat = top - low <= temperature
    centre = mean_of(body, tail, n) if flat else top
    if not flat:
        ties, total = exponentiate(body, tail, n, top, how, e)
        mean = (ties + total) / n
        for k in range(len(orders)):
            if orders[k] == 1:  # deviations sum to zero: those above it are half
                norm = 2 * (ties * (1 - mean) + in_parts(e, 1, F(mean))) / mean
                near = near or norm < NEAR * n
            elif orders[k] == 2:
                squares = (ties + in_parts(e, 2, F(0))) / mean**2 - n
                norm = math.sqrt(max(squares, 0.0))
                near = near or squares < NEAR**2 * n
            elif orders[k] == math.inf:
                norm = max(1 / mean - 1, 1 - math.exp((low - top) / temperature) / mean)
                near = near or norm < NEAR
            else:
                continue
            found[k] = norm if norm > LEAST_NORM else -1.0
        if near:
            centre = top + temperature * math.log(mean)
    if near:
        ends = (low - F(centre)) / temperature, (top - F(centre)) / temperature
        centred32(body, tail, n, centre, ends, how, orders, found, e)


@compiled
def one_hot32(body, tail, n, ends, how, orders, found, e):
    """Norms of ``softmax(f/T) - e_y``, or -1 where float32 is not enough."""
    ties, total = exponentiate(body, tail, n, ends[1], how, e)
    others = ties - 1 + total  # in units of the largest class
    for k in range(len(orders)):
        if orders[k] == 2:
            norm = math.sqrt(others**2 + (ties - 1) + in_parts(e, 2, F(0)))
            found[k] = norm / (1 + others) if norm > LEAST_ROOT else -1.0
        elif orders[k] in (1.0, math.inf):
            norm = 2 * others if orders[k] == 1 else others
            found[k] = norm / (1 + others) if others > LEAST_OTHERS else -1.0


@compiled
def padded32(body, tail, n, ends, temperature, one_hot, orders, found, e):
    """As :func:`deviation_norms32`, of a row that is padded to whole vectors."""
    how = scaled(temperature)
    if one_hot:
        one_hot32(body, tail, n, ends, how, orders, found, e)
    else:
        uniform32(body, tail, n, ends, temperature, how, orders, found, e)


@compiled
def deviation_norms32(row, temperature, one_hot, orders, found, spare, e):
    """Fill ``found`` where float32 is enough, and leave what is below zero elsewhere.

    A short row is copied to where it can be padded, of a long one only the end.
    """
    n = len(row)
    first = n - n % VECTOR if n > PART else 0
    rest = len(e) - first
    fill(spare[n - first : rest], F(row[0]))
    copy(row[first:], spare)
    most, least = extremes(spare[:rest], key(reinterpret(F(row[0]))), key(reinterpret(F(row[0]))))
    most, least = extremes(row[:first], most, least)
    fill(spare[n - first : rest], F(-math.inf))
    ends = np.float64(reinterpret(key(least))), np.float64(reinterpret(key(most)))
    if first:
        padded32(row[:first], spare[:rest], n, ends, temperature, one_hot, orders, found, e)
    else:
        padded32(spare[:rest], spare[:0], n, ends, temperature, one_hot, orders, found, e)
