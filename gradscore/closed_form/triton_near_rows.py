"""Rows in Triton that are too close to uniform or one-hot for the plain forms in float32.

Both forms stay in float32, which GPUs have registers and units for. Near uniform, deviations are
those of ``expm1`` around the mean, in place of a difference to 1. Near one-hot, all but the
largest logit are taken relative to the second largest.
"""

import triton
import triton.language as tl

from gradscore.closed_form.triton_tiles import (
    INFINITE,
    gather,
    inverse,
    logit_tile,
    positive,
    power,
    root,
)


@triton.jit
def expm1(t):
    """Return ``exp(t) - 1`` to a few units of float32: a series for up to a half."""
    series = 1 + t * (1 / 8)
    series = 1 + t * (1 / 7) * series
    series = 1 + t * (1 / 6) * series
    series = 1 + t * (1 / 5) * series
    series = 1 + t * (1 / 4) * series
    series = 1 + t * (1 / 3) * series
    series = t * (1 + t * (1 / 2) * series)
    return tl.where(tl.abs(t) < 0.5, series, tl.exp2(t * 1.4426950408889634) - 1)


@triton.jit
def mean_of_expm1(
    source,
    classes: tl.constexpr,
    temperature,
    center,
    FROM_HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
    CLASS_BLOCK: tl.constexpr,
):
    """Return mean and largest magnitude of ``expm1((f_j - center)/T)`` of each row."""
    by_temperature = 1 / temperature
    total = tl.zeros([ROWS], tl.float32)
    largest = tl.zeros([ROWS], tl.float32)
    for start in range(0, classes, CLASS_BLOCK):
        column = start + tl.arange(0, CLASS_BLOCK)
        f = logit_tile(
            source, column, classes, tl.float32, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK,
            CLASS_BLOCK,
        )  # fmt: skip
        a = expm1((f - center[:, None]) * by_temperature)
        a = tl.where(column[None, :] < classes, a, 0.0)
        total += tl.sum(a, axis=1)
        largest = tl.maximum(largest, tl.max(tl.abs(a), axis=1))
    return total / classes, largest


@triton.jit
def near_uniform_rows(
    source,
    classes: tl.constexpr,
    temperature,
    top,
    others,
    p,
    KIND: tl.constexpr,
    FROM_HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
    CLASS_BLOCK: tl.constexpr,
):
    """Return ``V`` of rows near uniform, and 1.

    With ``a_j = expm1((f_j - c)/T)`` and their mean ``m``, the deviation is
    ``(a_j - m)/(1 + m)`` for any ``c``. At the logarithm of the mean exponential ``m`` is no more
    than the rounding of ``c``, and no difference loses digits.
    """
    center = top + temperature * tl.log((1 + others) / classes)
    # The sum above has float32's digits next to 1. Those next to 0 come from the deviations.
    mean, _ = mean_of_expm1(
        source, classes, temperature, center, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK, CLASS_BLOCK
    )
    center += temperature * mean
    mean, largest = mean_of_expm1(
        source, classes, temperature, center, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK, CLASS_BLOCK
    )
    by_temperature = 1 / temperature
    unit, by_unit = inverse(largest + tl.abs(mean), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, classes, CLASS_BLOCK):
        column = start + tl.arange(0, CLASS_BLOCK)
        f = logit_tile(
            source, column, classes, tl.float32, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK,
            CLASS_BLOCK,
        )  # fmt: skip
        a = expm1((f - center[:, None]) * by_temperature)
        magnitude = tl.where(column[None, :] < classes, tl.abs(a - mean[:, None]), 0.0)
        total = gather(total, power(magnitude * by_unit[:, None], p, KIND), KIND)
    return root(total, p, KIND) * (unit / (1 + mean)), 1.0


@triton.jit
def near_one_hot_rows(
    source,
    classes: tl.constexpr,
    rate,
    top,
    p,
    KIND: tl.constexpr,
    FROM_HEAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURE_BLOCK: tl.constexpr,
    CLASS_BLOCK: tl.constexpr,
):
    """Return ``V`` of rows near one-hot in units of a power of 2, and that power.

    The score may be in float32's range where V is not: the power comes in when V has met the
    features. Such a row has one largest logit.
    """
    second = tl.full([ROWS], -float("inf"), tl.float32)
    for start in range(0, classes, CLASS_BLOCK):
        column = start + tl.arange(0, CLASS_BLOCK)
        f = logit_tile(
            source, column, classes, tl.float32, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK,
            CLASS_BLOCK,
        )  # fmt: skip
        below = tl.where(f == top[:, None], -float("inf"), f)
        second = tl.maximum(second, tl.max(below, axis=1))
    # Where all others are minus infinity, zero stands in: their exponentials are zero anyway.
    origin = tl.where(second > -float("inf"), second, 0.0)
    others = tl.zeros([ROWS], tl.float32)
    for start in range(0, classes, CLASS_BLOCK):
        column = start + tl.arange(0, CLASS_BLOCK)
        f = logit_tile(
            source, column, classes, tl.float32, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK,
            CLASS_BLOCK,
        )  # fmt: skip
        below = tl.where(f == top[:, None], -float("inf"), f)
        others += tl.sum(tl.exp2((below - origin[:, None]) * rate), axis=1)
    total = tl.full([ROWS], 1.0, tl.float32)
    if KIND != INFINITE:
        by_others = 1 / positive(others)
        for start in range(0, classes, CLASS_BLOCK):
            column = start + tl.arange(0, CLASS_BLOCK)
            f = logit_tile(
                source, column, classes, tl.float32, FROM_HEAD, HAS_BIAS, ROWS, FEATURE_BLOCK,
                CLASS_BLOCK,
            )  # fmt: skip
            below = tl.where(f == top[:, None], -float("inf"), f)
            e = tl.exp2((below - origin[:, None]) * rate) * by_others[:, None]
            total = gather(total, power(e, p, KIND), KIND)
    share = others * tl.exp2((second - top) * rate + 64)
    return root(total, p, KIND) * share, 5.421010862427522e-20
