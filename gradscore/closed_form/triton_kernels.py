"""The closed form in Triton: tiles of rows, whose logits come from memory or from the head.

Rows whose classes fit one tile are read, and exponentiated, once. Longer ones are read twice:
once for the largest and the sum of exponentials, once for the norm of the deviations. Made from
features and weight, logits are never written. Rows too close to uniform or one-hot for float32 are
in :mod:`gradscore.closed_form.triton_near_rows`.

The order of a norm is one of four kinds, known when a kernel is compiled: 1, 2 and infinity cost
no power function. Features, and deviations for other orders, are scaled to about 1 before they
are raised to a power, so that no power, nor a sum of them, leaves the range of the type. A logit
costs one special function of the processor, the exponential: temperatures, means and units divide
a row once, and its entries are multiplied with the quotient.
"""

import triton
import triton.language as tl

from gradscore.closed_form.triton_near_rows import near_one_hot_rows, near_uniform_rows
from gradscore.closed_form.triton_tiles import (
    INFINITE,
    OTHER,
    gather,
    inverse,
    logit_tile,
    norm_of_rows,
    per_logit,
    positive,
    power,
    root,
)


@triton.jit(do_not_specialize=["rows"])
def closed_form_kernel(
    features,
    feature_row: tl.constexpr,
    feature_column: tl.constexpr,
    logits,
    logit_row: tl.constexpr,
    logit_column: tl.constexpr,
    weight,
    weight_row: tl.constexpr,
    weight_column: tl.constexpr,
    bias,
    score,
    rows,
    in_features: tl.constexpr,
    classes: tl.constexpr,
    p,
    temperature,
    near,
    KIND: tl.constexpr,
    ONE_HOT: tl.constexpr,
    TYPE: tl.constexpr,
    FROM_HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
    CLASS_BLOCK: tl.constexpr,
):
    """Store the scores of ``ROWS`` rows; logits from memory or, ``FROM_HEAD``, made here."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    # Rows past the end repeat the last one: no special values to carry, and nothing is stored.
    row = tl.minimum(row, rows - 1)
    x = features + row[:, None] * feature_row
    if FROM_HEAD:
        source = (x, feature_column, weight, weight_row, weight_column, bias, in_features)
    else:
        source = (logits + row[:, None] * logit_row, logit_column)
    rate = per_logit(temperature)

    u = norm_of_rows(x, feature_column, in_features, p, KIND, TYPE, ROWS, FEATURE_BLOCK)
    if classes <= CLASS_BLOCK:
        top, others, v, measure = deviation_of_tile(
            source, classes, rate, p, KIND, ONE_HOT, TYPE, FROM_HEAD, HAS_BIAS, ROWS,
            FEATURE_BLOCK, CLASS_BLOCK,
        )  # fmt: skip
    else:
        top, low, others = online_softmax(
            source, classes, rate, KIND, TYPE, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK,
            CLASS_BLOCK,
        )  # fmt: skip
        v, measure = deviation_of_rows(
            source, classes, rate, top, low, others, p, KIND, ONE_HOT, TYPE, FROM_HEAD, HAS_BIAS,
            ROWS, FEATURE_BLOCK, CLASS_BLOCK,
        )  # fmt: skip
    # Comparisons and maxima drop a NaN or an infinity among the logits, and a row that has
    # nothing but minus infinity has no softmax.
    sound = (others == others) & (tl.abs(top) < float("inf"))
    s = u * tl.where(sound, v, float("nan")) / temperature
    if TYPE == tl.float32:  # noqa: SIM300
        again = sound & (measure <= near)
        if tl.max(again.to(tl.int32), axis=0) > 0:
            if ONE_HOT:
                v, lifted = near_one_hot_rows(
                    source, classes, rate, top, p, KIND, FROM_HEAD, HAS_BIAS, ROWS,
                    FEATURE_BLOCK, CLASS_BLOCK,
                )  # fmt: skip
            else:
                v, lifted = near_uniform_rows(
                    source, classes, temperature, top, others, p, KIND, FROM_HEAD, HAS_BIAS,
                    ROWS, FEATURE_BLOCK, CLASS_BLOCK,
                )  # fmt: skip
            s = tl.where(again, u * v / temperature * lifted, s)
    s = -s if ONE_HOT else s / classes
    tl.store(score + row, s.to(tl.float32), mask=live)


@triton.jit
def deviation_of_tile(
    source,
    classes: tl.constexpr,
    rate,
    p,
    KIND: tl.constexpr,
    ONE_HOT: tl.constexpr,
    TYPE: tl.constexpr,
    FROM_HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
    CLASS_BLOCK: tl.constexpr,
):
    """Return largest logit, the others' sum, ``V`` and what tells its digits, of one tile."""
    column = tl.arange(0, CLASS_BLOCK)
    f = logit_tile(
        source, column, classes, TYPE, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK, CLASS_BLOCK
    )
    top = tl.max(f, axis=1)
    e = tl.exp2((f - top[:, None]) * rate).to(TYPE)
    equal = f == top[:, None]
    rest = tl.where(equal, 0.0, e).to(TYPE)
    largest = tl.sum(equal.to(TYPE), axis=1)
    others = tl.sum(rest, axis=1) + (largest - 1)
    mean = (1 + others) / classes
    inside = column[None, :] < classes
    if ONE_HOT:
        norm, measure = one_hot_norm(
            others,
            gather(
                tl.zeros([ROWS], TYPE),
                power(rest * (1 / positive(others))[:, None], p, KIND),
                KIND,
            ),
            largest,
            p,
            KIND,
        )
    else:
        magnitude = tl.where(inside, tl.abs(e * (1 / mean)[:, None] - 1), 0.0).to(TYPE)
        if KIND == OTHER:
            unit, by_unit = inverse(tl.max(magnitude, axis=1), TYPE)
            powers = power(magnitude * by_unit[:, None], p, KIND)
            norm = root(gather(tl.zeros([ROWS], TYPE), powers, KIND), p, KIND) * unit
        else:
            norm = root(gather(tl.zeros([ROWS], TYPE), power(magnitude, p, KIND), KIND), p, KIND)
        measure = norm
    return top, others, norm.to(TYPE), measure


@triton.jit
def one_hot_norm(others, total, largest, p, KIND: tl.constexpr):
    """Return ``V`` of the one-hot target, and the share of all classes but one largest.

    ``total`` holds the powers of the classes below the largest, in units of the others' sum. There
    the entry at y is 1, and each further largest logit is ``1 / others``.
    """
    share = others / (1 + others)
    if KIND == INFINITE:
        total = tl.maximum(total, 1.0)
    else:
        tied = power(1 / tl.maximum(others, 1.0), p, KIND)
        total = total + 1 + tl.maximum(largest - 1, 0) * tied
    return root(total, p, KIND) * share, share


@triton.jit
def online_softmax(
    source,
    classes: tl.constexpr,
    rate,
    KIND: tl.constexpr,
    TYPE: tl.constexpr,
    FROM_HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
    CLASS_BLOCK: tl.constexpr,
):
    """Return each row's largest and (for orders that need it) smallest logit, and the others' sum.

    The others' sum is that of ``exp((f_j - max)/T)`` over all but one largest logit. It is kept
    apart from the 1 of the largest, in which it would drown on a confident row.
    """
    top = tl.full([ROWS], -float("inf"), TYPE)
    low = tl.full([ROWS], float("inf"), TYPE)
    others = tl.zeros([ROWS], TYPE)
    for start in range(0, classes, CLASS_BLOCK):
        column = start + tl.arange(0, CLASS_BLOCK)
        f = logit_tile(
            source, column, classes, TYPE, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK, CLASS_BLOCK
        )
        if KIND == OTHER:
            inside = tl.where(column[None, :] < classes, f, float("inf"))
            low = tl.minimum(low, tl.min(inside, axis=1))
        highest = tl.max(f, axis=1)
        raised = highest > top
        higher = tl.maximum(top, highest)
        equal = f == higher[:, None]
        # Minus infinity less itself is NaN: while a row has shown nothing else, zero stands in.
        origin = tl.where(higher > -float("inf"), higher, 0.0)
        e = tl.where(equal, 0.0, tl.exp2((f - origin[:, None]) * rate)).to(TYPE)
        added = tl.sum(e, axis=1)
        count = tl.sum(equal.to(TYPE), axis=1)
        lowered = (others + 1) * tl.exp2((top - origin) * rate)
        others = tl.where(raised, lowered + (count - 1) + added, others + count + added).to(TYPE)
        top = higher
    return top, low, others


@triton.jit
def deviation_of_rows(
    source,
    classes: tl.constexpr,
    rate,
    top,
    low,
    others,
    p,
    KIND: tl.constexpr,
    ONE_HOT: tl.constexpr,
    TYPE: tl.constexpr,
    FROM_HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
    CLASS_BLOCK: tl.constexpr,
):
    """Return ``V``, and what tells whether ``TYPE`` held enough digits for it."""
    by_mean = classes / (1 + others)
    unit = tl.full([ROWS], 1.0, TYPE)
    by_unit = unit
    if ONE_HOT:
        by_unit = 1 / positive(others)
    elif KIND == OTHER:
        lowest = tl.exp2((low - top) * rate)
        unit, by_unit = inverse(tl.maximum(by_mean - 1, 1 - lowest * by_mean), TYPE)
    total = tl.zeros([ROWS], TYPE)
    largest = tl.zeros([ROWS], TYPE)
    for start in range(0, classes, CLASS_BLOCK):
        column = start + tl.arange(0, CLASS_BLOCK)
        f = logit_tile(
            source, column, classes, TYPE, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK, CLASS_BLOCK
        )
        e = tl.exp2((f - top[:, None]) * rate).to(TYPE)
        if ONE_HOT:
            equal = f == top[:, None]
            largest += tl.sum(equal.to(TYPE), axis=1)
            magnitude = tl.where(equal, 0.0, e)
        else:
            magnitude = tl.where(column[None, :] < classes, tl.abs(e * by_mean[:, None] - 1), 0.0)
        magnitude = magnitude.to(TYPE)
        if ONE_HOT or KIND == OTHER:
            magnitude = magnitude * by_unit[:, None]
        total = gather(total, power(magnitude, p, KIND), KIND)
    if ONE_HOT:
        norm, measure = one_hot_norm(others, total, largest, p, KIND)
    else:
        norm = root(total, p, KIND) * unit
        measure = norm
    return norm.to(TYPE), measure
