"""Vectors of float32 numbers as values in compiled loops: what is vectorised is not left to luck.

In compiled functions ``+ - * / < >`` take vectors, and float32 numbers beside them. LLVM
makes of each vector as many registers as the processor needs: four of AVX-512 for 64 numbers.
"""

import operator
from collections.abc import Callable, Sequence

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

NUMBER, WHOLE, BIT = ir.FloatType(), ir.IntType(32), ir.IntType(1)


class Vector(types.Type):
    """``width`` float32 numbers, or with ``bits`` as many truth values."""

    def __init__(self, width: int, *, bits: bool = False) -> None:
        self.width, self.bits = width, bits
        super().__init__(f"{'bits' if bits else 'float32'}x{width}")

    @property
    def key(self) -> tuple[int, bool]:
        """What makes two types the same."""
        return self.width, self.bits


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(BIT if kind.bits else NUMBER, kind.width))


def _common(kinds: Sequence[types.Type]) -> Vector | None:
    """Return the vector type of an operation on vectors and numbers, if it is one."""
    vectors = {kind for kind in kinds if isinstance(kind, Vector)}
    others = [kind for kind in kinds if kind not in vectors and kind != types.float32]
    return vectors.pop() if len(vectors) == 1 and not others else None


def _spread(builder: ir.IRBuilder, value: ir.Value, width: int) -> ir.Value:
    """Return a vector that holds a number ``width`` times."""
    kind, zeros = ir.VectorType(value.type, width), ir.VectorType(WHOLE, width)
    empty = ir.Constant(kind, ir.Undefined)
    one = builder.insert_element(empty, value, WHOLE(0))
    return builder.shuffle_vector(one, empty, ir.Constant(zeros, [0] * width))


def _vectors(builder: ir.IRBuilder, values: Sequence[ir.Value], width: int) -> list[ir.Value]:
    return [v if isinstance(v.type, ir.VectorType) else _spread(builder, v, width) for v in values]


def _larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def _call(builder: ir.IRBuilder, name: str, values: Sequence[ir.Value]) -> ir.Value:
    """Call LLVM's function of that name on vectors of one type."""
    kind = values[0].type
    function = ir.FunctionType(kind, [value.type for value in values])
    name = f"llvm.{name}.v{kind.count}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), values)


Generator = Callable[..., ir.Value]


def _elementwise(generate: Generator) -> Callable:
    """Return what numba calls to lower a function of vectors and numbers."""

    def lower(context, builder, sig, arguments):
        width = next(kind.width for kind in sig.args if isinstance(kind, Vector))
        return generate(builder, *_vectors(builder, arguments, width))

    return lower


def _register_operator(function: Callable, generate: Generator, *, bits: bool = False) -> None:
    class Template(AbstractTemplate):
        key = function

        def generic(self, kinds, named):
            kind = _common(kinds)
            return kind and signature(Vector(kind.width, bits=bits), *kinds)

    infer_global(function)(Template)
    for kinds in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
        lower_builtin(function, *kinds)(_elementwise(generate))


_register_operator(operator.add, ir.IRBuilder.fadd)
_register_operator(operator.sub, ir.IRBuilder.fsub)
_register_operator(operator.mul, ir.IRBuilder.fmul)
_register_operator(operator.truediv, ir.IRBuilder.fdiv)
_register_operator(operator.lt, lambda b, x, y: b.fcmp_ordered("<", x, y), bits=True)
_register_operator(operator.gt, lambda b, x, y: b.fcmp_ordered(">", x, y), bits=True)


@intrinsic
def larger(typing, a, b):
    """Return the larger of each pair; ``b`` where one is not a number."""
    kind = _common((a, b))
    return kind and kind(a, b), _elementwise(_larger)


@intrinsic
def smaller(typing, a, b):
    """Return the smaller of each pair; ``b`` where one is not a number."""
    kind = _common((a, b))
    return kind and kind(a, b), _elementwise(_smaller)


@intrinsic
def not_below(typing, a, b):
    """Return whether ``a < b`` is false, as beside what is not a number."""
    kind = _common((a, b))
    lower = _elementwise(lambda b, x, y: b.fcmp_unordered(">=", x, y))
    return kind and Vector(kind.width, bits=True)(a, b), lower


@intrinsic
def fma(typing, a, b, c):
    """Return ``a b + c``, rounded once where the processor can; of numbers too."""
    kind = _common((a, b, c)) or a
    lower = _elementwise(lambda b, *of: _call(b, "fmuladd", of))
    if kind is a and isinstance(a, types.Float):
        lower = _of_numbers
    return kind(a, b, c), lower


def _of_numbers(context, builder, sig, arguments):
    kind = arguments[0].type
    function = ir.FunctionType(kind, (kind, kind, kind))
    declared = builder.module.declare_intrinsic("llvm.fmuladd", (kind,), function)
    return builder.call(declared, arguments)


@intrinsic
def absolute(typing, a):
    """Return the magnitudes."""
    return a(a), _elementwise(lambda b, x: _call(b, "fabs", (x,)))


@intrinsic
def select(typing, bits, a, b):
    """Return the entries of ``a`` where a bit is set, and of ``b`` elsewhere."""
    kind = _common((a, b))
    return kind and kind(bits, a, b), _elementwise(lambda b, *of: b.select(*of))


@intrinsic
def times_power(typing, a, b):
    """Return ``2^k a`` for ``b = 1.5 2^23 + k``, whose last bits are those of ``k``.

    They are added to the exponent: neither ``a`` nor the result may be out of the normal range.
    """

    def generate(builder, x, y):
        whole = ir.VectorType(WHOLE, x.type.count)
        bits = builder.shl(builder.bitcast(y, whole), ir.Constant(whole, [23] * whole.count))
        return builder.bitcast(builder.add(builder.bitcast(x, whole), bits), x.type)

    kind = _common((a, b))
    return kind and kind(a, b), _elementwise(generate)


@intrinsic
def any_of(typing, bits):
    """Return whether a bit is set."""

    def generate(context, builder, sig, arguments):
        whole = builder.bitcast(arguments[0], ir.IntType(bits.width))
        return builder.icmp_unsigned("!=", whole, whole.type(0))

    return types.boolean(bits), generate


@intrinsic(prefer_literal=True)
def spread(typing, number, width):
    """Return a vector of ``width`` times the same float32 number."""

    def generate(context, builder, sig, arguments):
        return _spread(builder, arguments[0], width.literal_value)

    return Vector(width.literal_value)(types.float32, width), generate


@intrinsic(prefer_literal=True)
def first(typing, n, width):
    """Return bits of which the first ``n`` are set."""

    def generate(context, builder, sig, arguments):
        places = ir.Constant(
            ir.VectorType(WHOLE, width.literal_value), [*range(width.literal_value)]
        )
        count = _spread(builder, builder.trunc(arguments[0], WHOLE), width.literal_value)
        return builder.icmp_signed("<", places, count)

    return Vector(width.literal_value, bits=True)(types.intp, width), generate


def _reduced(combine: Generator) -> Callable:
    """Return what lowers a vector to one number, one half with the other."""

    def lower(context, builder, sig, arguments):
        (value,) = arguments
        while (half := value.type.count // 2) > 0:
            kind = ir.VectorType(WHOLE, half)
            places = [*range(half)], [*range(half, 2 * half)]
            value = combine(
                builder,
                *(
                    builder.shuffle_vector(value, value, ir.Constant(kind, some))
                    for some in places
                ),
            )
        return builder.extract_element(value, WHOLE(0))

    return lower


@intrinsic
def total_of(typing, a):
    """Return the sum of the numbers."""
    return types.float32(a), _reduced(ir.IRBuilder.fadd)


@intrinsic
def largest_of(typing, a):
    """Return the largest number."""
    return types.float32(a), _reduced(_larger)


@intrinsic
def smallest_of(typing, a):
    """Return the smallest number."""
    return types.float32(a), _reduced(_smaller)


def _address(context, builder, kind, array, index, width: int) -> ir.Value:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(NUMBER, width).as_pointer())


@intrinsic(prefer_literal=True)
def load(typing, array, index, width):
    """Return ``width`` entries of an array that lie side by side, of which ``index`` is first."""

    def generate(context, builder, sig, arguments):
        address = _address(context, builder, array, *arguments[:2], width.literal_value)
        return builder.load(address, align=4)

    return Vector(width.literal_value)(array, types.intp, width), generate


@intrinsic
def load_some(typing, array, index, bits, other):
    """Return entries where a bit is set, and ``other`` elsewhere; only the former are touched."""

    def generate(context, builder, sig, arguments):
        address = _address(context, builder, array, *arguments[:2], bits.width)
        filling = _spread(builder, arguments[3], bits.width)
        align = WHOLE(4)
        values = address, align, arguments[2], filling
        function = ir.FunctionType(filling.type, [value.type for value in values])
        name = f"llvm.masked.load.v{bits.width}f32.p0"
        return builder.call(cgutils.get_or_insert_function(builder.module, function, name), values)

    return Vector(bits.width)(array, types.intp, bits, types.float32), generate


@intrinsic
def store(typing, array, index, value):
    """Write a vector where :func:`load` would read it."""

    def generate(context, builder, sig, arguments):
        address = _address(context, builder, array, *arguments[:2], value.width)
        builder.store(arguments[2], address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate
