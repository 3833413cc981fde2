"""Named groups of a model's parameters: stem, block1 ..., neck, last, all; and their selection.

Every parameter belongs to exactly one of stem, the blocks, neck and ``last``, but for the bias of
the last layer: as in the paper it is in none of them, and only in ``all``.
"""

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from gradscore.errors import InvalidArgument
from gradscore.models.blocks import find_blocks, is_below
from gradscore.models.head import Head

FIXED = ("last", "all")
"""Groups that keep their meaning: no override redefines them."""


def parameter_groups(
    model: nn.Module, head: Head, overrides: Mapping[str, str | Sequence[str]] | None = None
) -> dict[str, tuple[str, ...]]:
    """Return the groups of a model's parameters, in the order of depth.

    ``last`` is the last layer's weight. ``block1``, ``block2`` ... are the stages of a staged
    network, or the four parts of a network of equal blocks. ``stem`` is what is registered
    before the first block, ``neck`` what comes after the last one; what lies between two blocks
    belongs to the later one, as the downsampling of a ResNet does. A network in which no blocks
    are found is all stem. Groups without parameters are left out.

    Args:
        model: Any network.
        head: Its last layer, as :func:`~gradscore.models.head.find_head` finds it.
        overrides: Group name to a glob over parameter names, or to several, in a sequence or
            joined by commas. The group then holds what they match, and no other group does.

    Returns:
        Group name to parameter names, these in the model's order.

    Raises:
        InvalidArgument: If an override names ``last`` or ``all``, matches nothing, or matches
            what ``last`` or another override holds.
    """
    names = [name for name, _ in model.named_parameters()]
    # Where two heads are averaged, neither is `head.bias`, but both biases are left out alike.
    biases = {f"{weight.rpartition('.')[0]}.bias".lstrip(".") for weight in head.weights}
    home = _homes(names, find_blocks(model, biases.union(head.weights)))
    home |= dict.fromkeys(head.weights, "last")
    home = {name: group for name, group in home.items() if name not in biases}
    home = _overridden(names, home, overrides or {})
    blocks = sorted({group for group in home.values() if group.startswith("block")}, key=_depth)
    others = [group for group in dict.fromkeys(home.values()) if group not in blocks]
    before = [group for group in others if group == "stem"]
    after = [group for group in ("neck", "last") if group in others]
    middle = [group for group in others if group not in before + after]
    groups = {
        group: tuple(name for name in names if home.get(name) == group)
        for group in (*before, *blocks, *middle, *after)
    }
    return groups | {"all": tuple(names)}


def select(
    names: Sequence[str], groups: Mapping[str, Sequence[str]], layers: str | Sequence[str]
) -> tuple[str, ...]:
    """Return the parameters that a choice of layers names.

    Args:
        names: The model's parameters, in its order.
        groups: What :func:`parameter_groups` found.
        layers: A group, a parameter, a module (all that is below it) or a glob over parameter
            names; or several, in a sequence or joined by commas.

    Returns:
        The chosen names, each once, in the model's order.

    Raises:
        InvalidArgument: If nothing is chosen, or an item matches nothing.
    """
    chosen: set[str] = set()
    items = _items(layers)
    for item in items:
        found = groups.get(item) or [
            name
            for name in names
            if name == item or name.startswith(f"{item}.") or fnmatchcase(name, item)
        ]
        if not found:
            close = difflib.get_close_matches(item, [*groups, *names], n=3)
            hint = f" Close ones are {', '.join(close)}." if close else ""
            raise InvalidArgument(
                f"Expected layers as {', '.join(groups)} or a glob over parameter names, "
                f"got {item!r}.{hint}"
            )
        chosen.update(found)
    if not chosen:
        raise InvalidArgument(f"Expected layers as {', '.join(groups)} or a glob, got none.")
    return tuple(name for name in names if name in chosen)


def _homes(names: list[str], blocks: list[tuple[str, ...]]) -> dict[str, str]:
    """Return the group of every parameter: its block, or by where it is registered."""
    home = {}
    for number, modules in enumerate(blocks, start=1):
        home |= {name: f"block{number}" for name in names if is_below(name, modules)}
    inside = [position for position, name in enumerate(names) if name in home]
    following = "neck"
    for position in reversed(range(len(names))):
        if names[position] in home:
            following = home[names[position]]
        else:
            first = not inside or position < inside[0]
            home[names[position]] = "stem" if first else following
    return home


def _overridden(
    names: list[str], home: dict[str, str], overrides: Mapping[str, str | Sequence[str]]
) -> dict[str, str]:
    claimed: dict[str, str] = {}
    for group, patterns in overrides.items():
        if group in FIXED or not group:
            raise InvalidArgument(
                f"Expected a group other than {' and '.join(FIXED)} to redefine, got {group!r}."
            )
        found = select(names, {}, patterns)
        for name in found:
            other = claimed.get(name) or ("last" if home.get(name) == "last" else None)
            if other:
                raise InvalidArgument(
                    f"Expected each parameter in one group, got {name} in {other} and {group}."
                )
            claimed[name] = group
    kept = {name: group for name, group in home.items() if group not in overrides}
    return kept | claimed


def _depth(block: str) -> tuple[int, str]:
    number = block.removeprefix("block")
    return (int(number), "") if number.isdigit() else (10**9, number)


def _items(layers: str | Sequence[str]) -> list[str]:
    parts = (
        layers.split(",") if isinstance(layers, str) else [p for i in layers for p in _items(i)]
    )
    return [part.strip() for part in parts if part.strip()]
