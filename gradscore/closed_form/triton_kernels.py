"""The closed form in Triton: tiles of rows, whose logits come from memory or from the head.

A program reads its rows' logits twice: once for the largest and the sum of exponentials, once for
the norm of the deviations. Rows too close to uniform or one-hot for float32 are done in float64.
Made from features and weight, logits are never written, but multiplied twice.

The order of a norm is one of four kinds, known when a kernel is compiled: 1, 2 and infinity cost
no power function. Features, and deviations for other orders, are scaled to at most 1 before they
are raised to a power, so that no power, nor a sum of them, leaves the range of the type.
"""

import triton
import triton.language as tl

ONE, TWO, INFINITE, OTHER = (tl.constexpr(kind) for kind in range(4))


@triton.jit
def power(magnitude, p, KIND: tl.constexpr):
    """Return ``magnitude ** p``; for infinity the magnitude itself."""
    result = magnitude
    if KIND == TWO:
        result = magnitude * magnitude
    if KIND == OTHER:
        # The bound keeps log2 finite; such powers vanish beside the largest entry's, which is 1.
        log = tl.log2(tl.maximum(magnitude, 1e-37))
        result = tl.where(magnitude > 0, tl.exp2(p * log), 0.0).to(magnitude.dtype)
    return result


@triton.jit
def gather(total, tile, KIND: tl.constexpr):
    """Add a tile ``[rows, columns]`` of powers to the rows' totals ``[rows]``."""
    if KIND == INFINITE:
        result = tl.maximum(total, tl.max(tile, axis=1))
    else:
        result = total + tl.sum(tile, axis=1)
    return result


@triton.jit
def root(total, p, KIND: tl.constexpr):
    """Return ``total ** (1/p)``; for infinity the total itself."""
    result = total
    if KIND == TWO:
        result = tl.sqrt(total)
    if KIND == OTHER:
        log = tl.log2(tl.maximum(total, 1e-37))
        result = tl.where(total > 0, tl.exp2(log / p), 0.0).to(total.dtype)
    return result


@triton.jit
def positive(scale):
    """Return ``scale``, or 1 where it is zero."""
    return tl.where(scale > 0, scale, 1.0).to(scale.dtype)


@triton.jit(do_not_specialize=["rows"])
def closed_form_kernel(
    features,
    feature_row,
    feature_column,
    logits,
    logit_row,
    logit_column,
    weight,
    weight_row,
    weight_column,
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

    u = norm_of_rows(x, feature_column, in_features, p, KIND, TYPE, ROWS, FEATURE_BLOCK)
    top, low, others = online_softmax(
        source, classes, temperature, TYPE, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK, CLASS_BLOCK
    )
    v, measure = deviation_of_rows(
        source, classes, temperature, top, low, others, p, KIND, ONE_HOT, TYPE, FROM_HEAD,
        HAS_BIAS, ROWS, FEATURE_BLOCK, CLASS_BLOCK,
    )  # fmt: skip
    if TYPE == tl.float32:  # noqa: SIM300
        again = measure <= near
        if tl.max(again.to(tl.int32), axis=0) > 0:
            top64, low64, others64 = online_softmax(
                source, classes, temperature, tl.float64, FROM_HEAD, HAS_BIAS, ROWS,
                FEATURE_BLOCK, CLASS_BLOCK,
            )  # fmt: skip
            v64, _ = deviation_of_rows(
                source, classes, temperature, top64, low64, others64, p, KIND, ONE_HOT,
                tl.float64, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK, CLASS_BLOCK,
            )  # fmt: skip
            v = tl.where(again, v64.to(tl.float32), v)
    # Comparisons and maxima drop a NaN or an infinity among the logits, and a row that has
    # nothing but minus infinity has no softmax.
    sound = (others == others) & (tl.abs(top) < float("inf"))
    v = tl.where(sound, v, float("nan"))

    s = u * v / temperature
    s = -s if ONE_HOT else s / classes
    tl.store(score + row, s.to(tl.float32), mask=live)


@triton.jit
def norm_of_rows(
    x,
    stride,
    columns: tl.constexpr,
    p,
    KIND: tl.constexpr,
    TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the L_p norm of rows at addresses ``x [ROWS, 1]``; NaN where an entry is NaN."""
    scale = tl.full([ROWS], 1.0, TYPE)
    broken = tl.zeros([ROWS], tl.int32)
    if KIND != ONE:
        scale = tl.zeros([ROWS], TYPE)
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)[None, :]
            entry = tl.load(x + column.to(tl.int64) * stride, column < columns, other=0.0)
            scale = tl.maximum(scale, tl.max(tl.abs(entry.to(TYPE)), axis=1))
            broken += tl.sum((entry != entry).to(tl.int32), axis=1)
    norm = scale
    if KIND != INFINITE:
        scale = positive(scale)
        total = tl.zeros([ROWS], TYPE)
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)[None, :]
            entry = tl.load(x + column.to(tl.int64) * stride, column < columns, other=0.0)
            total = gather(total, power(tl.abs(entry.to(TYPE)) / scale[:, None], p, KIND), KIND)
        norm = root(total, p, KIND) * scale
    return tl.where(broken > 0, float("nan"), norm).to(TYPE)


@triton.jit
def logit_tile(
    source,
    column,
    classes: tl.constexpr,
    TYPE: tl.constexpr,
    FROM_HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
    CLASS_BLOCK: tl.constexpr,
):
    """Return logits ``[ROWS, CLASS_BLOCK]`` of classes ``column``; minus infinity past them."""
    inside = column < classes
    if FROM_HEAD:
        x, x_column, weight, weight_row, weight_column, bias, in_features = source
        w = weight + column[None, :].to(tl.int64) * weight_row
        tile = tl.zeros([ROWS, CLASS_BLOCK], tl.float32)
        for start in range(0, in_features, FEATURE_BLOCK):
            inner = start + tl.arange(0, FEATURE_BLOCK)
            left = tl.load(
                x + inner[None, :].to(tl.int64) * x_column, inner[None, :] < in_features, other=0.0
            )
            right = tl.load(
                w + inner[:, None].to(tl.int64) * weight_column,
                (inner[:, None] < in_features) & inside[None, :],
                other=0.0,
            )
            tile = tl.dot(left, right, tile, input_precision="ieee")
        if HAS_BIAS:
            tile += tl.load(bias + column, inside, other=0.0).to(tl.float32)[None, :]
        tile = tl.where(inside[None, :], tile, -float("inf"))
    else:
        f, f_column = source
        tile = tl.load(
            f + column[None, :].to(tl.int64) * f_column, inside[None, :], other=-float("inf")
        )
    return tile.to(TYPE)


@triton.jit
def online_softmax(
    source,
    classes: tl.constexpr,
    temperature,
    TYPE: tl.constexpr,
    FROM_HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
    CLASS_BLOCK: tl.constexpr,
):
    """Return each row's largest and smallest logit, and the others' sum.

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
        low = tl.minimum(low, tl.min(tl.where(column[None, :] < classes, f, float("inf")), axis=1))
        highest = tl.max(f, axis=1)
        raised = highest > top
        higher = tl.maximum(top, highest)
        equal = f == higher[:, None]
        # Minus infinity less itself is NaN: while a row has shown nothing else, zero stands in.
        origin = tl.where(higher > -float("inf"), higher, 0.0)
        e = tl.where(equal, 0.0, tl.exp((f - origin[:, None]) / temperature)).to(TYPE)
        added = tl.sum(e, axis=1)
        count = tl.sum(equal.to(TYPE), axis=1)
        lowered = (others + 1) * tl.exp((top - origin) / temperature)
        others = tl.where(raised, lowered + (count - 1) + added, others + count + added).to(TYPE)
        top = higher
    return top, low, others


@triton.jit
def deviation_of_rows(
    source,
    classes: tl.constexpr,
    temperature,
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
    mean = (1 + others) / classes
    share = others / (1 + others)
    if ONE_HOT:
        unit = positive(others)
    elif KIND == OTHER:
        lowest = tl.exp((low - top) / temperature)
        unit = positive(tl.maximum(1 / mean - 1, 1 - lowest / mean))
    else:
        unit = tl.full([ROWS], 1.0, TYPE)
    total = tl.zeros([ROWS], TYPE)
    largest = tl.zeros([ROWS], tl.int32)
    for start in range(0, classes, CLASS_BLOCK):
        column = start + tl.arange(0, CLASS_BLOCK)
        f = logit_tile(
            source, column, classes, TYPE, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK, CLASS_BLOCK
        )
        e = tl.exp((f - top[:, None]) / temperature)
        if ONE_HOT:
            equal = f == top[:, None]
            largest += tl.sum(equal.to(tl.int32), axis=1)
            magnitude = tl.where(equal, 0.0, e)
        else:
            magnitude = tl.where(column[None, :] < classes, tl.abs(e / mean[:, None] - 1), 0.0)
        total = gather(total, power(magnitude.to(TYPE) / unit[:, None], p, KIND), KIND)

    if ONE_HOT:
        # In units of the others' sum the entry at y is 1; each further largest logit is 1/others.
        tied = power(1 / tl.maximum(others, 1.0), p, KIND)
        if KIND == INFINITE:
            total = tl.maximum(total, 1.0)
        else:
            total = total + 1 + tl.maximum(largest - 1, 0).to(TYPE) * tied
        norm = root(total, p, KIND) * share
        measure = share
    else:
        norm = root(total, p, KIND) * unit
        measure = norm
    return norm.to(TYPE), measure
