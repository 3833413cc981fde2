"""Norms of the deviations of rows with few classes, 64 rows at once, in float64: compiled loops.

The vector units would idle along such a row, so that the rows lie side by side.
"""

import math

from gradscore.closed_form.elementary import compiled, exp64, fill, inlined
from gradscore.closed_form.row_norms import SAFE_SQUARES

LANES = 64

NARROW = 32
"""Most classes for which this is faster."""


@inlined
def maxima(f, top):
    """Raise ``top`` to ``f`` where that is larger."""
    for k in range(len(f)):
        top[k] = f[k] if f[k] > top[k] else top[k]


@inlined
def exponentials(f, top, inverse, e, ties, others):
    """Fill ``e``, zero for a largest class; count those, and add up the others."""
    for k in range(len(e)):
        d = f[k] - top[k]
        other = 1.0 if d < 0 else 0.0
        e[k] = exp64(d * inverse, 0.0) * other
        ties[k] += 1.0 - other
        others[k] += e[k]


@compiled
def less_one(f, top, inverse, m, shift):
    """Fill ``m`` with ``exp((f - top) / T) - 1``, and add it up."""
    for k in range(len(m)):
        m[k] = exp64((f[k] - top[k]) * inverse, 1.0)
        shift[k] += m[k]


@inlined
def centre(f, top, e, mean):
    """Turn exponentials into deviations, in units of the mean."""
    for k in range(len(e)):
        e[k] += (0.0 if f[k] < top[k] else 1.0) - mean[k]


@compiled
def replace(m, shift, mean, e):
    """Put in what ``exp - 1`` gives where the softmax is nearly uniform."""
    for k in range(len(e)):
        exact = m[k] - shift[k]
        e[k] = exact if mean[k] > 0.5 else e[k]


@inlined
def accumulate(e, p, norm):
    """Add the magnitudes or squares of ``e`` to ``norm``, or take the larger magnitude."""
    if p == 1:
        for k in range(len(e)):
            norm[k] += abs(e[k])
    elif p == 2:
        for k in range(len(e)):
            norm[k] += e[k] * e[k]
    else:
        for k in range(len(e)):
            norm[k] = abs(e[k]) if abs(e[k]) > norm[k] else norm[k]


@compiled
def prepare(f, columns, top):
    """Lay rows side by side in ``columns [classes, LANES]``, with their largest logits."""
    for k in range(len(f)):
        row = f[k]
        for j in range(len(row)):
            columns[j, k] = row[j]
    first = columns[0]
    for k in range(len(top)):
        top[k] = first[k]
    for j in range(1, len(columns)):
        maxima(columns[j], top)


@compiled
def finish(norm, ties, others, one_hot, p, found):
    """Turn sums of powers into norms; -1 where squares were too small."""
    for k in range(len(norm)):
        value, unit = norm[k], others[k]
        if one_hot:  # the entry of the largest class is minus the sum of all others
            rest = ties[k] - 1 + others[k]
            unit = 1 + rest
            if p == 2:
                value += ties[k] - 1 + rest * rest
            else:
                value = 2 * rest if p == 1 else rest
        if p == 2:
            value = math.sqrt(value) if value > SAFE_SQUARES else -unit
        found[k] = value / unit


@compiled
def norms_side_by_side(columns, top, temperature, one_hot, orders, found, work):
    """Fill ``found [orders, LANES]``, with -1 where the order or a square needs another way.

    Args:
        columns: Logits, ``[classes, LANES]``.
        top: Their maxima.
        temperature: Softmax temperature.
        one_hot: Whether the target is one-hot.
        orders: Of the norms.
        found: What is filled.
        work: Overwritten, ``[2 classes + 4, LANES]``.
    """
    n, inverse = len(columns), 1 / temperature
    ties, others, shift, norm = work[0], work[1], work[2], work[3]
    e, m = work[4 : 4 + n], work[4 + n :]
    fill(ties, 0.0)
    fill(others, 0.0)
    for j in range(n):
        exponentials(columns[j], top, inverse, e[j], ties, others)
    mean = others
    if not one_hot:
        near = 0.0
        for k in range(len(mean)):
            mean[k] = (ties[k] + others[k]) / n
            near = max(near, mean[k])
        for j in range(n):
            centre(columns[j], top, e[j], mean)
        if near > 0.5:
            fill(shift, 0.0)
            for j in range(n):
                less_one(columns[j], top, inverse, m[j], shift)
            for k in range(len(shift)):
                shift[k] /= n
            for j in range(n):
                replace(m[j], shift, mean, e[j])
    for s in range(len(orders)):
        if orders[s] in (1.0, 2.0, math.inf):
            fill(norm, 0.0)
            for j in range(n):
                accumulate(e[j], orders[s], norm)
            finish(norm, ties, others, one_hot, orders[s], found[s])
        else:
            fill(found[s], -1.0)
