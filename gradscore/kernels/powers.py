"""Norms as tiles are read: what every kernel here accumulates.

The order is known when a kernel is compiled, as one of four kinds, so that 1, 2 and infinity cost
no power function. Features are scaled to at most 1 before they are raised to a power, so that no
power, nor a sum of them, leaves the range of the type. Deviations, whose range is known, are so
only where the order is none of these.
"""

import math

import triton
import triton.language as tl

ONE, TWO, INFINITE, OTHER = (tl.constexpr(kind) for kind in range(4))


def kind_of(p: float) -> int:
    """Return which of the four kinds of order ``p`` is."""
    return {1.0: 0, 2.0: 1, math.inf: 2}.get(p, 3)


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
