"""The table of rules: which function and which of its arguments is served by which rule.

Every layer family has a file with its functions and its rules; a line here joins them.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from gradscore.errors import InvalidArgument
from gradscore.rules import broadcast, convolution, linear, normalization
from gradscore.rules.rule import Call, Rule

__all__ = [
    "RULES",
    "SIGNATURES",
    "Call",
    "Rule",
    "find_rule",
    "find_rules",
    "register_rule",
    "signature",
]

Signatures = Mapping[Callable[..., Any], tuple[str, ...]]

_TABLE: tuple[tuple[Signatures, Mapping[str, Rule]], ...] = (
    (linear.LAYERS, {"weight": linear.WEIGHT, "bias": linear.BIAS}),
    (linear.MATMULS, {"input": linear.LEFT, "other": linear.RIGHT}),
    (linear.MMS, {"input": linear.LEFT, "mat2": linear.RIGHT}),
    (linear.EINSUMS, {}),
    (linear.EMBEDDINGS, {"weight": linear.TABLE}),
    (convolution.PLAIN, {"weight": convolution.WEIGHT, "bias": convolution.BIAS}),
    (
        convolution.TRANSPOSED,
        {"weight": convolution.TRANSPOSED_WEIGHT, "bias": convolution.BIAS},
    ),
    (normalization.BATCH, normalization.scale_and_shift("batch norm")),
    (normalization.INSTANCE, normalization.scale_and_shift("instance norm")),
    (normalization.GROUP, normalization.scale_and_shift("group norm")),
    (normalization.LAYER, normalization.scale_and_shift("layer norm", trailing=True)),
    (normalization.RMS, normalization.scale_alone("rms norm", trailing=True)),
    (broadcast.EXPANSIONS, {"input": broadcast.EXPANSION}),
    (broadcast.SCALES, {"input": broadcast.SCALE, "other": broadcast.SCALE}),
    (broadcast.SHIFTS, {"input": broadcast.SHIFT, "other": broadcast.SHIFT}),
    (broadcast.DIFFERENCES, {"input": broadcast.SHIFT, "other": broadcast.SHIFT}),
    (
        broadcast.SCALED_SHIFTS,
        {"input": broadcast.SHIFT, "tensor1": broadcast.SCALE, "tensor2": broadcast.SCALE},
    ),
    (broadcast.PRELUS, {"weight": broadcast.PRELU}),
    (broadcast.ATTENTIONS, {"attn_mask": broadcast.MASK}),
)
"""Functions with the names of their arguments, and the rule that serves each argument."""

SIGNATURES: dict[Callable[..., Any], tuple[str, ...]] = {
    function: names for functions, _ in _TABLE for function, names in functions.items()
}
"""Names of positional arguments; functions written in C++ do not have them in Python."""
assert len(SIGNATURES) == sum(len(functions) for functions, _ in _TABLE), "a function stands twice"

RULES: dict[tuple[Callable[..., Any], str], Rule] = {
    (function, argument): rule
    for functions, rules in _TABLE
    for function in functions
    for argument, rule in rules.items()
}


def register_rule(function: Callable[..., Any], argument: str, rule: Rule) -> None:
    """Serve ``argument`` of ``function`` by ``rule`` from now on.

    Args:
        function: A function that reaches torch's function overrides: one of torch's own, or one
            that calls ``torch.overrides.handle_torch_function``.
        argument: The name of the argument that takes the parameter.
        rule: What gives its per-sample gradients.

    Raises:
        InvalidArgument: If the function's argument already has a rule.
    """
    if (function, argument) in RULES:
        known = RULES[function, argument].name
        raise InvalidArgument(
            f"Expected an argument without a rule, got {argument!r} of "
            f"{getattr(function, '__name__', function)}, which is served by {known!r}."
        )
    RULES[function, argument] = rule


def find_rule(
    function: Callable[..., Any], argument: str, arguments: Mapping[str, Any]
) -> Rule | None:
    """Return the rule that serves an argument of a call, or ``None``.

    Args:
        function: The function called.
        argument: The argument's name, ``operands[1]`` being an entry of ``operands``.
        arguments: All arguments of the call by name.
    """
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    return find_rules(function, (argument,), tensors, lambda: arguments)[0]


def find_rules(
    function: Callable[..., Any],
    names: Sequence[str],
    tensors: Iterable[Tensor],
    arguments: Callable[[], Mapping[str, Any]],
) -> list[Rule | None]:
    """Return the rule that serves each of some arguments of a call, as :func:`find_rule` does.

    Args:
        function: The function called.
        names: The arguments' names.
        tensors: All tensors among the arguments of the call.
        arguments: Gives all arguments of the call by name, which few rules ask for.
    """
    for tensor in tensors:
        if tensor.is_complex():
            return [None] * len(names)
    found = [RULES.get((function, name.partition("[")[0])) for name in names]
    return [
        None
        if rule is None or (rule.serves is not None and not rule.serves(arguments()))
        else rule
        for rule in found
    ]


def signature(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a function's positional arguments, as far as they are known."""
    if function not in SIGNATURES:
        try:
            names = tuple(
                ("*" if parameter.kind is parameter.VAR_POSITIONAL else "") + name
                for name, parameter in inspect.signature(function).parameters.items()
                if parameter.kind is not parameter.VAR_KEYWORD
            )
        except (TypeError, ValueError):
            names = ()
        SIGNATURES[function] = names
    return SIGNATURES[function]
