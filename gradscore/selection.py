"""From what users call layers to the names of parameters."""

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from gradscore.errors import InvalidArgument


def differentiable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's real floating-point or complex parameters by name, shared ones once."""
    return differentiable(dict(model.named_parameters()))


def differentiable(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those of some parameters that are real floating-point or complex, by name."""
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.is_floating_point() or parameter.is_complex()
    }


def select_parameters(
    model: nn.Module,
    layers: str | Sequence[str],
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Tensor]:
    """Return the parameters of a model that a choice of layers names, by name.

    Args:
        model: Any module.
        layers: As of :func:`select`.
        groups: Groups of the model's parameters by name; none by default.

    Raises:
        InvalidArgument: If nothing is chosen, or an item matches nothing.
    """
    return selected_of(differentiable_parameters(model), layers, groups)


def selected_of(
    parameters: Mapping[str, Tensor],
    layers: str | Sequence[str],
    groups: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Tensor]:
    """Return those of some parameters by name that a choice of layers names.

    Arguments are those of :func:`select_parameters`, which see for what is raised.
    """
    names = select(tuple(parameters), {} if groups is None else groups, layers)
    return {name: parameters[name] for name in names}


def select(
    names: Sequence[str], groups: Mapping[str, Sequence[str]], layers: str | Sequence[str]
) -> tuple[str, ...]:
    """Return the parameters that a choice of layers names.

    Args:
        names: The parameters to choose from, in the model's order.
        groups: Groups of the model's parameters by name; consulted only for choices other than
            ``all`` and exact names, since finding them may cost a forward.
        layers: A group, a parameter, a module (all that is below it) or a glob over parameter
            names; or several, in a sequence or joined by commas.

    Returns:
        The chosen names, each once, in the model's order.

    Raises:
        InvalidArgument: If nothing is chosen, or an item matches nothing.
    """
    known, chosen = set(names), set()
    for item in _items(layers):
        if item == "all":
            found = known
        elif item in known:
            found = {item}
        elif item in groups:
            found = known.intersection(groups[item])
        else:
            below = f"{item}."
            found = {n for n in names if n.startswith(below) or fnmatchcase(n, item)}
        if not found:
            raise InvalidArgument(_unknown(item, names, groups))
        chosen |= found
    if not chosen:
        raise InvalidArgument(f"Expected layers as {', '.join(groups)} or a glob, got none.")
    return tuple(name for name in names if name in chosen)


def _items(layers: str | Sequence[str]) -> list[str]:
    if not isinstance(layers, str | Sequence):
        raise InvalidArgument(f"Expected layers as text, or several, got {layers!r}.")
    parts = (
        layers.split(",") if isinstance(layers, str) else [p for i in layers for p in _items(i)]
    )
    return [part.strip() for part in parts if part.strip()]


def _unknown(item: str, names: Sequence[str], groups: Mapping[str, Sequence[str]]) -> str:
    if item in groups:
        return f"Group {item!r} holds none of the {len(names)} parameters asked for."
    close = difflib.get_close_matches(item, [*groups, *names], n=3)
    hint = f" Close ones are {', '.join(close)}." if close else ""
    known = ", ".join(dict.fromkeys([*groups, "all"]))
    return f"Expected layers as {known} or a glob over parameter names, got {item!r}.{hint}"
