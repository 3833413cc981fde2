"""What the Triton kernels share: powers and roots of one kind of order, and tiles of logits."""

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


@triton.jit
def inverse(scale, TYPE: tl.constexpr):
    """Return ``scale``, within the bounds of float32's inverses, and its inverse."""
    unit = tl.minimum(tl.maximum(scale, 1.2e-38), 8e37).to(TYPE)
    return unit, (1 / unit).to(TYPE)


@triton.jit
def per_logit(temperature):
    """Return what a difference of logits is multiplied with to be a power of 2."""
    return 1.4426950408889634 / temperature


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
            tile = tl.dot(left, right, tile, input_precision="tf32x3")
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
def norm_of_rows(
    x,
    stride: tl.constexpr,
    columns: tl.constexpr,
    p,
    KIND: tl.constexpr,
    TYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the L_p norm of rows at addresses ``x [ROWS, 1]``; NaN where an entry is NaN."""
    column = tl.arange(0, BLOCK)[None, :]
    # A row that fits one block is read once; the second reading of a longer one is not hoisted.
    entry = tl.load(x + column.to(tl.int64) * stride, column < columns, other=0.0)
    broken = tl.zeros([ROWS], tl.int32)
    scale = tl.full([ROWS], 1.0, TYPE)
    if KIND != ONE:
        broken = tl.sum((entry != entry).to(tl.int32), axis=1)
        scale = tl.max(tl.abs(entry.to(TYPE)), axis=1)
        for start in range(BLOCK, columns, BLOCK):
            more = tl.load(
                x + (start + column).to(tl.int64) * stride, start + column < columns, other=0.0
            )
            scale = tl.maximum(scale, tl.max(tl.abs(more.to(TYPE)), axis=1))
            broken += tl.sum((more != more).to(tl.int32), axis=1)
    norm = scale
    if KIND != INFINITE:
        unit, by_unit = inverse(scale, TYPE)
        total = gather(
            tl.zeros([ROWS], TYPE), power(tl.abs(entry.to(TYPE)) * by_unit[:, None], p, KIND), KIND
        )
        for start in range(BLOCK, columns, BLOCK):
            more = tl.load(
                x + (start + column).to(tl.int64) * stride, start + column < columns, other=0.0
            )
            total = gather(total, power(tl.abs(more.to(TYPE)) * by_unit[:, None], p, KIND), KIND)
        norm = root(total, p, KIND) * unit
    return tl.where(broken > 0, float("nan"), norm).to(TYPE)
