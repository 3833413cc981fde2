"""Norms of the deviations of rows with few classes, 16 rows at once, in float32: compiled loops.

The vector units would idle at the end of such a row, so that the rows lie side by side. Where
``exp z`` would lose the digits of a row, ``exp z - 1`` takes its place. What float32 cannot hold
is left to float64.
"""

import math

import numpy as np

from gradscore.closed_form.elementary import (
    F,
    compiled,
    exp32,
    exp32_less_one,
    inlined,
    prefetch_line,
    scaled,
    transpose16,
)
from gradscore.closed_form.float32_rows import LEAST_NORM, LEAST_OTHERS, LEAST_ROOT
from gradscore.closed_form.vectors import (
    absolute,
    any_of,
    fma,
    larger,
    load,
    not_below,
    select,
    spread,
    store,
)

LANES = 16

NARROW = 128
"""Most classes for which this is faster: they fill half an inner cache."""

TIES, OTHERS, CENTRE, NEAR, AROUND, TOTAL, SPACE = range(7)
"""Rows of lanes beside two of them a class: how many classes are the largest, the sum of the
others, the centre of deviations, whether a row is nearly uniform, what is subtracted for an order,
and the sum for it; how many these are."""

FEW = 8
"""Entries that are added up alone: sums of such sums lose fewer digits."""

HALF = F(0.5)
"""Above this mean of ``exp z``, 1 being the largest, ``exp z - 1`` keeps the digits."""


@inlined
def in_sixteens(n):
    """Return the next multiple of 16."""
    return -(-n // LANES) * LANES


@compiled
def prepare(f, first, columns):
    """Lay rows from ``first`` on side by side in ``columns [classes, LANES]``.

    Sixteen entries are taken at once: of the next rows too, where there are some.
    """
    rows, n = f.shape
    if (first + LANES - 1) * n + in_sixteens(n) <= f.size:
        for j in range(0, n, LANES):
            transpose16(f, first * n + j, n, columns, j * LANES, LANES)
    else:
        for k in range(min(LANES, rows - first)):
            for j in range(n):
                columns[j, k] = f[first + k, j]


@inlined
def column(x, j):
    """Return the entries of class ``j``."""
    return load(x, j * LANES, LANES)


@compiled
def exponentiate(columns, n, how, e, sums, f, following):
    """Fill ``e``, zero for a largest class, and the first sums; return the largest logits.

    While the processor is busy with it, the rows that begin at ``following`` in ``f`` are fetched:
    as many lines as there are classes.
    """
    top, nothing = column(columns, 0), spread(F(0), LANES)
    for j in range(1, n):
        top = larger(column(columns, j), top)
    ties, others = nothing, nothing
    for start in range(0, n, FEW):
        some = nothing
        for j in range(start, min(start + FEW, n)):
            prefetch_line(f, following + j * LANES)
            d = column(columns, j) - top
            value = exp32(d, how)
            store(e, j * LANES, value)
            some = some + value
            ties = select(not_below(d, F(0)), ties + F(1), ties)
        others = others + some
    store(sums[TIES], 0, ties)
    store(sums[OTHERS], 0, others)
    return top


@inlined
def near_logarithm(x):
    """Return about ``log(1 + x)`` for ``x`` from minus a half to 0: a centre need not be exact."""
    return x * fma(x, fma(x, F(1 / 3), F(-0.5)), F(1))


@compiled
def centred(columns, n, top, temperature, how, e, sums):
    """Replace ``e`` of nearly uniform rows by ``exp z - 1`` around another centre.

    Fill in which rows these are, and the mean of ``e`` for each.
    """
    nothing = spread(F(0), LANES)
    mean = (load(sums[TIES], 0, LANES) + load(sums[OTHERS], 0, LANES)) / F(n)
    near = mean > HALF
    if any_of(near):
        shift, centre = nothing, fma(near_logarithm(mean - F(1)), F(temperature), top)
        for start in range(0, n, FEW):
            some = nothing
            for j in range(start, min(start + FEW, n)):
                value = exp32_less_one(column(columns, j) - centre, how)
                store(e, j * LANES, select(near, value, column(e, j)))
                some = some + value
            shift = shift + some
        mean = select(near, shift / F(n), mean)
    store(sums[NEAR], 0, select(near, nothing + F(1), F(0)))
    store(sums[CENTRE], 0, mean)


@inlined
def further(total, d, p):
    """Return a sum of what is above zero, or of squares, or the larger magnitude."""
    if p == 1:
        return total + larger(d, F(0))
    if p == 2:
        return fma(d, d, total)
    return larger(absolute(d), total)


@compiled
def accumulate(e, n, p, one_hot, sums):
    """Fill in the sum of what exceeds the centre or of the squares, or the largest magnitude.

    Squares of a confident row are around zero: around the mean they would be rounded.
    """
    everything = spread(F(0), LANES)
    around = everything
    if not one_hot:
        around = load(sums[CENTRE], 0, LANES)
        if p == 2:
            near = everything < load(sums[NEAR], 0, LANES)
            around = select(near, around, select(around * around * F(n) < F(0.5), F(0), around))
    store(sums[AROUND], 0, around)
    for start in range(0, n, FEW):
        some = spread(F(0), LANES)
        for j in range(start, min(start + FEW, n)):
            some = further(some, column(e, j) - around, p)
        everything = larger(some, everything) if p == math.inf else everything + some
    store(sums[TOTAL], 0, everything)


@compiled
def finish_uniform(sums, n, p, found):
    """Turn sums over classes into norms; -1 where float32 was too small.

    Far from uniform the largest classes, 1 each, are still missing in the sums.
    """
    ties, others = sums[TIES], sums[OTHERS]
    for k in range(LANES):
        mean, norm = (np.float64(ties[k]) + np.float64(others[k])) / n, np.float64(sums[TOTAL, k])
        far = sums[NEAR, k] == 0
        if p == 1:
            norm = 2 * (norm + (ties[k] * (1 - mean) if far else 0.0))
        elif p == 2:
            around = np.float64(sums[AROUND, k])
            missing = ties[k] * (1 - 2 * around) - n * (mean - around) ** 2
            norm = math.sqrt(norm + missing if far else norm)
        else:
            norm = max(norm, 1 - mean if far else 0.0)
        mean = mean if far else 1 + np.float64(sums[CENTRE, k])
        found[k] = -1.0 if norm <= LEAST_NORM else norm / mean


@compiled
def finish_one_hot(sums, p, found):
    """Likewise; the entry of the largest class is minus the sum of all others."""
    ties, others = sums[TIES], sums[OTHERS]
    for k in range(LANES):
        rest = np.float64(ties[k]) - 1 + np.float64(others[k])
        norm, least = rest, LEAST_OTHERS
        if p == 1:
            norm = 2 * rest
        elif p == 2:
            norm = math.sqrt(rest * rest + (ties[k] - 1) + sums[TOTAL, k])
            least = LEAST_ROOT
        found[k] = -1.0 if norm <= least else norm / (1 + rest)


@compiled
def norms_side_by_side(work, f, following, temperature, one_hot, orders, found):
    """Fill ``found [orders, LANES]``, with -1 where the order or the digits need another way.

    Args:
        work: ``[2 in_sixteens(n) + SPACE, LANES]``: the logits of ``n`` classes, and what is
            overwritten.
        f: Logits, ``[batch, classes]``, of which those are the next that begin at ``following``.
        following: A place in ``f`` taken as a flat array.
        temperature: Softmax temperature.
        one_hot: Whether the target is one-hot.
        orders: Of the norms.
        found: What is filled.
    """
    n, how = f.shape[1], scaled(temperature)
    size = in_sixteens(n)
    columns, e, sums = work[:size], work[size : 2 * size], work[2 * size :]
    top = exponentiate(columns, n, how, e, sums, f, following)
    if not one_hot:
        centred(columns, n, top, temperature, how, e, sums)
    for s in range(len(orders)):
        if orders[s] in (1.0, 2.0, math.inf):
            if not one_hot or orders[s] == 2:
                accumulate(e, n, orders[s], one_hot, sums)
            if one_hot:
                finish_one_hot(sums, orders[s], found[s])
            else:
                finish_uniform(sums, n, orders[s], found[s])
        else:
            found[s] = -1.0
