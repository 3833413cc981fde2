"""Elementary functions for compiled loops: of vectors of float32, or vectorised of float64.

The library functions that a compiler would call take one number at a time.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from gradscore.closed_form.vectors import fma, not_below, select, times_power

F = np.float32

C1, C2, C3 = F(0.693147188), F(0.2402264979), F(0.05550357306)
C4, C5, C6 = F(0.009618237754), F(0.001339080409), F(0.0001540351272)
"""Coefficients of the polynomial nearest to ``(2^r - 1) / r`` for ``r`` up to a half: 1.1e-8 of
it."""

D1, D2, D3 = F(0.6931469769), F(0.2402224111), F(0.05550734516)
D4, D5 = F(0.009671576442), F(0.001326464539)
"""Those of the polynomial with which ``2^r`` is at most 9.2e-8 off: where many are added up."""

compiled = njit(error_model="numpy")
inlined = njit(error_model="numpy", forceinline=True)
summed = njit(error_model="numpy", forceinline=True, fastmath={"reassoc", "contract", "nsz"})
"""A sum's terms may change their order. Numbers that are not finite have to reach the result."""


@intrinsic
def reinterpret(typing, value):
    """Return the bits of a float as an integer of its size, or the other way round."""
    kinds = (types.float32, types.int32), (types.float64, types.int64)
    other = {**dict(kinds), **{whole: real for real, whole in kinds}}[value]

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(other))

    return other(value), generate


@intrinsic
def borrowed(typing, array):
    """Return an array that owns nothing: its slices cost no counting of references.

    The array that it was made of has to be kept until the last use.
    """

    def generate(context, builder, signature, arguments):
        bare = context.make_array(array)(context, builder, arguments[0])
        bare.meminfo = cgutils.get_null_value(bare.meminfo.type)
        bare.parent = cgutils.get_null_value(bare.parent.type)
        return bare._getvalue()

    return array(array), generate


@intrinsic
def prefetch_line(typing, array, index):
    """Ask for the cache line of an entry, into the outer cache of the core."""

    def generate(context, builder, signature, arguments):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        data = context.make_array(array)(context, builder, arguments[0]).data
        entry = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), (byte, number, number, number))
        function = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
        to_read, outer_cache, data_cache = (number(value) for value in (0, 2, 1))
        builder.call(function, (entry, to_read, outer_cache, data_cache))
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def transpose16(typing, source, first, step, target, place, width):
    """Copy 16 rows of 16 float32 entries to where their columns lie.

    Entry ``j`` of row ``i`` goes from ``source[first + i step + j]`` to ``target[place + j width +
    i]``, arrays taken as flat ones. Rows are interleaved in pairs, four times.
    """

    def generate(context, builder, signature, arguments):
        vector, number = ir.VectorType(ir.FloatType(), 16), arguments[1].type

        def at(kind, array, start, stride, i):
            data = context.make_array(kind)(context, builder, array).data
            place = builder.add(start, builder.mul(stride, number(i)))
            return builder.bitcast(builder.gep(data, [place]), vector.as_pointer())

        source, first, step, target, place, width = arguments
        halves = [[k + half for i in range(8) for k in (i, 16 + i)] for half in (0, 8)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), 16), half) for half in halves]
        rows = [
            builder.load(at(signature.args[0], source, first, step, i), align=4) for i in range(16)
        ]
        for _ in range(4):
            pairs = zip(rows[:8], rows[8:], strict=True)
            rows = [builder.shuffle_vector(*pair, mask) for pair in pairs for mask in masks]
        for j, column in enumerate(rows):
            builder.store(column, at(signature.args[3], target, place, width, j), align=4)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp), generate


@inlined
def prefetch(x, start, n):
    """Ask for ``n`` float32 entries that lie side by side, line by line."""
    for j in range(start, start + n, 16):
        prefetch_line(x, j)


@inlined
def fits_float32(temperature):
    """Return whether float32 can divide by a temperature."""
    return 1e-30 < temperature < 1e30


@inlined
def scaled(temperature):
    """Return ``log2 e / T``, what float32 lost of it, what :func:`exp32` has for less, and 1."""
    factor = 1.4426950408889634 / temperature
    one = F(temperature / temperature)
    return F(factor), F(factor - np.float64(F(factor))), F(-86.0 * temperature), one


@inlined
def split32(d, how):
    """Return ``k`` and ``r`` of ``exp(d / T) = 2^(k + r)``, vectors, ``r`` at most a half.

    Adding the large number rounds to ``k``, and leaves it in the last bits.

    Args:
        d: Differences of logits, up to 88 T.
        how: What :func:`scaled` says of ``T``.
    """
    factor, correction = how[:2]
    rounded = fma(d, factor, F(12582912.0))
    less = F(12582912.0) - rounded
    return rounded, fma(d, correction, fma(d, factor, less))


@inlined
def polynomial32(r):
    """Return ``(2^r - 1) / r`` for ``r`` up to a half."""
    q = fma(fma(r, C6, C5), r, C4)
    return fma(fma(fma(q, r, C3), r, C2), r, C1)


@inlined
def exp32(d, how):
    """Return ``exp(d / T)`` of numbers below zero; zero and NaN are returned as they are."""
    rounded, r = split32(select(d < how[2], how[2], d), how)
    value = times_power(fma(polynomial32(r), r, F(1)), rounded)
    return select(not_below(d, F(0)), d, value)


@inlined
def exp32_of_many(d, how):
    """Return ``exp(d / T)`` of numbers below zero, quickly; of zero about 1, of NaN anything."""
    rounded, r = split32(select(d < how[2], how[2], d), how)
    q = fma(fma(fma(fma(r, D5, D4), r, D3), r, D2), r, D1)
    return times_power(fma(q, r, F(1)), rounded)


@inlined
def exp32_less_one(d, how):
    """Return ``exp(d / T) - 1`` of numbers up to 88 T."""
    d = select(d < how[2], how[2], d)
    rounded, r = split32(d, how)
    power = times_power(F(1), rounded)
    return fma(power, polynomial32(r) * r, power - F(1))


@inlined
def exp64(z, less):
    """Return ``exp z - less`` for ``z`` up to 709, likewise; below -708.7 ``exp z`` is 0."""
    z = -709.4 if z < -709.4 else z
    rounded = fma(z, 1.4426950408889634, 6755399441056767.0)
    k = rounded - 6755399441056767.0
    r = fma(k, -1.90821492927058770002e-10, fma(k, -6.93147180369123816490e-01, z))
    q = fma(1 / 6227020800, r, 1 / 479001600)
    q = fma(fma(q, r, 1 / 39916800), r, 1 / 3628800)
    q = fma(fma(q, r, 1 / 362880), r, 1 / 40320)
    q = fma(fma(q, r, 1 / 5040), r, 1 / 720)
    q = fma(fma(q, r, 1 / 120), r, 1 / 24)
    q = fma(fma(q, r, 1 / 6), r, 0.5)
    q = fma(q, r * r, r)
    power = reinterpret(reinterpret(rounded) << 52)
    return fma(power, q, power - less)


@inlined
def log64(x):
    """Return ``log x`` for ``0 <= x <= 1``, by the series of the inverse hyperbolic tangent."""
    bits = reinterpret(x)
    k = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = reinterpret(bits - (k << 52))
    s = (m - 1) / (m + 1)
    t = s * s
    a = fma(fma(1 / 21, t, 1 / 19), t, 1 / 17)
    a = fma(fma(a, t, 1 / 15), t, 1 / 13)
    a = fma(fma(a, t, 1 / 11), t, 1 / 9)
    a = fma(fma(a, t, 1 / 7), t, 1 / 5)
    a = fma(fma(a, t, 1 / 3), t, 1.0)
    value = fma(2 * s, a, k * 1.90821492927058770002e-10) + k * 6.93147180369123816490e-01
    return (-math.inf if x < 2.3e-308 else value) + (x - x)
