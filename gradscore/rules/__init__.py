"""The table of rules: which function and which of its arguments is served by which rule.

Every family has a file with its ``RULES`` and the ``SIGNATURES`` of its functions, since
functions written in C++ do not tell the names of their arguments.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gradscore.errors import InvalidArgument
from gradscore.rules import (
    attention,
    convolution,
    embedding,
    expansion,
    linear,
    normalization,
    product,
    scale_shift,
)
from gradscore.rules.rule import Call, Rule

__all__ = ["RULES", "SIGNATURES", "Call", "Rule", "find_rule", "register_rule", "signature"]

_FAMILIES = (
    *(linear, convolution, normalization, embedding),
    *(expansion, scale_shift, product, attention),
)


def _merged(tables: list[Mapping[Any, Any]]) -> dict[Any, Any]:
    merged: dict[Any, Any] = {}
    for table in tables:
        twice = merged.keys() & table.keys()
        if twice:
            raise InvalidArgument(f"Expected one entry for each key, got two for {twice}.")
        merged |= table
    return merged


RULES: dict[tuple[Callable[..., Any], str], Rule] = _merged([f.RULES for f in _FAMILIES])
SIGNATURES: dict[Callable[..., Any], tuple[str, ...]] = _merged(
    [family.SIGNATURES for family in _FAMILIES]
)


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
    rule = RULES.get((function, argument.partition("[")[0]))
    if rule is None or (rule.serves is not None and not rule.serves(arguments)):
        return None
    tensors = (value for value in arguments.values() if isinstance(value, Tensor))
    return None if any(tensor.is_complex() for tensor in tensors) else rule


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
