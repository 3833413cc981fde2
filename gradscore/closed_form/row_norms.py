"""Norms of one row, and of its softmax's deviations from a target in float64: compiled loops.

Loops run over indices, and inner functions take slices: nothing else is vectorised.
"""

import math

import numpy as np

from gradscore.closed_form.elementary import (
    F,
    compiled,
    exp64,
    inlined,
    log64,
    reinterpret,
    summed,
)

PART = 512
"""Entries that are added up in their own type; the sums of such parts are added in float64."""

SAFE_SQUARES = 1e-280
"""Sums of squares above are not touched by squares below the range of float64."""


@summed
def magnitude_of_part(x):
    """Return ``|x|_1`` of one part, added up in its own type."""
    total = F(0)
    for j in range(len(x)):
        total += abs(x[j])
    return total


@summed
def magnitude64(x):
    """Return ``|x|_1``, added up in float64."""
    total = 0.0
    for j in range(len(x)):
        total += abs(np.float64(x[j]))
    return total


@inlined
def magnitude(x):
    """Return ``|x|_1``."""
    total = 0.0
    for start in range(0, len(x), PART):
        total += magnitude_of_part(x[start : start + PART])
    return total if total < math.inf else magnitude64(x)


@summed
def squares(x, scale):
    """Return the sum of the squares of ``scale x``, in float64."""
    total = 0.0
    for j in range(len(x)):
        value = np.float64(x[j]) * scale
        total += value * value
    return total


@compiled
def largest(x):
    """Return the largest magnitude; as whole numbers, NaN is the largest of all."""
    most = reinterpret(abs(x[0]))
    for j in range(len(x)):
        bits = reinterpret(abs(x[j]))
        most = bits if bits > most else most
    return np.float64(reinterpret(most))


@compiled
def logarithms(x, most, logs):
    """Fill ``logs`` with the logarithms of ``|x| / most``."""
    for j in range(len(x)):
        logs[j] = log64(abs(np.float64(x[j])) / most)


@summed
def power_sum(logs, p):
    """Return the sum of the powers ``p`` of what ``logs`` are the logarithms of."""
    total = 0.0
    for j in range(len(logs)):
        total += exp64(p * logs[j], 0.0)
    return total


@compiled
def norm_of(x, p, logs, known):
    """Return ``|x|_p``; ``logs`` is where the logarithms of ``x`` are kept, if ``known``."""
    if p == 1:
        return magnitude(x)
    if p == 2:
        total = squares(x, 1.0)
        if SAFE_SQUARES < total < math.inf:
            return math.sqrt(total)
    most = largest(x)
    if p == math.inf or most == 0 or not most < math.inf:
        return most
    if p == 2:
        scale = 2.0**600 if most < 1 else 2.0**-600
        return math.sqrt(squares(x, scale)) / scale
    if not known:
        logarithms(x, most, logs)
    return most * power_sum(logs, p) ** (1 / p)


@compiled
def exponentials64(row, top, temperature, less, e):
    """Fill ``e`` with ``exp((f - top) / T) - less``."""
    for j in range(len(e)):
        e[j] = exp64((row[j] - top) / temperature, less)


@compiled
def deviate(row, temperature, one_hot, e):
    """Fill ``e`` with a row's deviations but for a factor, which is returned."""
    y, top = 0, np.float64(row[0])
    for j in range(len(row)):
        if row[j] > top:
            y, top = j, np.float64(row[j])
    exponentials64(row, top, temperature, 0.0, e)
    if one_hot:
        e[y] = top - top  # zero, but NaN where the row has no softmax
        others = magnitude64(e)
        e[y] = others
        return 1 / (1 + others)
    mean = magnitude64(e) / len(row)
    centre, factor = mean, 1 / mean
    if mean > 0.5:
        exponentials64(row, top, temperature, 1.0, e)
        centre = -magnitude64(e) / len(row)  # none of them is above zero
        factor = 1 / (1 + centre)
    for j in range(len(e)):
        e[j] -= centre
    return factor


@inlined
def below_zero(found):
    """Return how many norms are still to be filled in."""
    missing = 0
    for k in range(len(found)):
        missing += 1 if found[k] < 0 else 0
    return missing


@compiled
def copy_rows(found, out):
    """Fill the rows of ``out`` with what the rows of ``found`` begin with.

    An assignment of slices would compile the words of its error, too, which takes seconds.
    """
    for s in range(len(out)):
        for k in range(out.shape[1]):
            out[s, k] = found[s, k]


@compiled
def settle(row, temperature, one_hot, orders, e, logs, found):
    """Fill in those norms that are still below zero."""
    factor, known = -1.0, False
    for k in range(len(orders)):
        if found[k] < 0:
            if factor < 0:
                factor = deviate(row, temperature, one_hot, e)
            found[k] = factor * norm_of(e, orders[k], logs, known)
            known = known or orders[k] not in (1.0, 2.0, math.inf)
