"""Named groups of a model's parameters: stem, block1 ..., neck, last, all; and their selection.

Every parameter belongs to exactly one of stem, the blocks, neck and ``last``, but for the bias of
the last layer: as in the paper it is in none of them, and only in ``all``.

Where the blocks are is read from how modules are nested and named. From the root down, the first
sequence of modules that holds most of the network's parameter tensors is its trunk: siblings
numbered under one name (``layer1``, ``layer2``, ...), or what a Sequential or ModuleList holds.
The trunk's stages are the blocks; a long row of small units has no stages, and is cut at its
pooling layers or, without any, in four equal parts by depth.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor, nn

from gradscore.errors import InvalidArgument, ModelError
from gradscore.network import listing_of, remembered
from gradscore.selection import select

if TYPE_CHECKING:
    from gradscore.layers.head import Head

FIXED = ("last", "all")
"""Groups that keep their meaning: no override redefines them."""

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
NUMBERED = re.compile(r"(\D*?)_?(\d+)([a-z]?(?:_\w+)?)")
"""``layer1``, ``stage_2``, ``inception4b``, ``conv3_12``: a name, a number and what follows."""
PARTS = 4
"""How many parts the depth of a network without stages is cut into, as in the paper's Table 2."""
MOST_STAGES = 8
MAJORITY = 0.5

_part = nn.Module.get_submodule  # scripted modules have none of their own

Unit = tuple[str, ...]
"""Names of the modules that make up one unit of the trunk."""


def parameter_groups(
    model: nn.Module, head: "Head", overrides: Mapping[str, str | Sequence[str]] | None = None
) -> dict[str, tuple[str, ...]]:
    """Return the groups of a model's parameters, in the order of depth.

    ``last`` is the last layer's weight. ``block1``, ``block2`` ... are the stages of a staged
    network, or the four parts of a network of equal blocks. ``stem`` is what is registered
    before the first block, ``neck`` what comes after the last one; what lies between two blocks
    belongs to the later one, as the downsampling of a ResNet does. A network in which no blocks
    are found is all stem. Groups without parameters are left out.

    Args:
        model: Any network.
        head: Its last layer, as :func:`~gradscore.layers.head.find_head` finds it.
        overrides: Group name to a glob over parameter names, or to several, in a sequence or
            joined by commas. The group then holds what they match, and no other group does.

    Returns:
        Group name to parameter names, these in the model's order.

    Raises:
        InvalidArgument: If an override names ``last`` or ``all``, matches nothing, or matches
            what ``last`` or another override holds.
    """
    names = [name for name, _ in model.named_parameters()]
    biases = head_biases(head)
    home = _homes(names, find_blocks(model, biases.union(head.weights)))
    home |= dict.fromkeys(head.weights, "last")
    home = {name: group for name, group in home.items() if name not in biases}
    home = _overridden(names, home, overrides or {})
    blocks = sorted({group for group in home.values() if group.startswith("block")}, key=_depth)
    order = dict.fromkeys(("stem", *blocks, *(overrides or ()), "neck", "last"))
    groups = {
        group: tuple(name for name in names if home.get(name) == group)
        for group in order
        if group in home.values()
    }
    return groups | {"all": tuple(names)}


def head_biases(head: "Head") -> set[str]:
    """Return the names that biases of the last layer would have.

    Where two heads are averaged, neither is ``head.bias``, but both are left out alike.
    """
    return {f"{weight.rpartition('.')[0]}.bias".lstrip(".") for weight in head.weights}


class ModelGroups(Mapping[str, tuple[str, ...]]):
    """A model's groups, found when first asked for: finding the last layer costs two forwards.

    They are found once for a state of the model and input of one kind.

    Args:
        model: Any network; held until its groups are found.
        images: A batch of its input, of which two samples are copied.

    Raises:
        ModelError: When asked, if a part of the model was replaced in the meantime.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        # Without samples, what they would be is no matter: only how the layers meet is asked.
        self._images = images[:2].clone() if len(images) else images.new_ones(1, *images.shape[1:])
        self._model, self._structure = model, _structure_of(model)
        self._found: dict[str, tuple[str, ...]] | None = None

    def _groups(self) -> dict[str, tuple[str, ...]]:
        if self._found is None:
            if _structure_of(self._model) != self._structure:
                raise ModelError(
                    "Expected the model that the gradients are of, got one with parts replaced; "
                    "ask for the norms again, or for their groups before the model is changed."
                )
            self._found = remembered(_find_groups, self._model, self._images)
            del self._model, self._images, self._structure
        return self._found

    def __reduce__(self) -> tuple[type[dict], tuple[dict[str, tuple[str, ...]]]]:
        """Pickle the groups alone, without the model."""
        return dict, (self._groups(),)

    def __getitem__(self, name: str) -> tuple[str, ...]:
        """Return the parameters of a group."""
        return self._groups()[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the groups' names in the order of depth."""
        return iter(self._groups())

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self._groups())


def _find_groups(model: nn.Module, images: Tensor) -> dict[str, tuple[str, ...]]:
    # Only names of groups need the last layer, and all that finds it.
    from gradscore.layers.head import head_of

    return parameter_groups(model, head_of(model, images))


def _structure_of(model: nn.Module) -> tuple[tuple[str, int], ...]:
    """Return names and identities of modules and parameters: a replaced part has another."""
    listing = listing_of(model)
    parts = (*listing.modules.items(), *listing.parameters.items())
    return tuple([(name, id(part)) for name, part in parts])


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


def find_blocks(model: nn.Module, head: Set[str]) -> list[Unit]:
    """Return the names of the modules of each block, in the order of depth.

    Args:
        model: Any network.
        head: Names of the last layer's weights and biases, which belong to no block.

    Returns:
        One tuple of module names a block; empty if the network has no such structure.
    """
    names = [name for name, _ in model.named_parameters() if name not in head]
    prefix, module = "", model
    while True:
        children = [prefix + name for name, _ in module.named_children()]
        units = _numbered(prefix, module, names)
        if _share(units, names) < MAJORITY and isinstance(module, CONTAINERS):
            units = [(child,) for child in children]
        if len(_weighty(units, names)) > 1 and _share(units, names) >= MAJORITY:
            return _staged(model, units, names)
        if not children:
            return []
        largest = max(children, key=lambda child: _count([child], names))
        if _count([largest], names) < MAJORITY * len(names):
            return []
        prefix, module = f"{largest}.", _part(model, largest)


def _numbered(prefix: str, module: nn.Module, names: list[str]) -> list[Unit]:
    """Return the numbered siblings that hold the most tensors, those of one number together."""
    families: dict[str, dict[int, list[str]]] = {}
    for name, _ in module.named_children():
        match = NUMBERED.fullmatch(name)
        if match and match[1]:
            numbers = families.setdefault(match[1], {})
            numbers.setdefault(int(match[2]), []).append(prefix + name)
    for family, numbers in families.items():
        if family in module._modules:  # `repeat` comes before `repeat_1`
            numbers[-1] = [prefix + family]
    rows = [
        [tuple(numbers[number]) for number in sorted(numbers)]
        for numbers in families.values()
        if len(numbers) > 1
    ]
    return max(rows, key=lambda units: _share(units, names), default=[])


def _staged(model: nn.Module, units: list[Unit], names: list[str]) -> list[Unit]:
    """Return the blocks among the units of a trunk: its stages, or parts of its depth."""
    heights = [max(_height(_part(model, name)) for name in unit) for unit in units]
    chosen = _weighty(units, names)
    for height in (2, 1):  # what holds blocks is a stage; what joins stages is flatter
        high = _weighty([u for u, h in zip(units, heights, strict=True) if h >= height], names)
        if len(high) > 1 and _share(high, names) >= MAJORITY:
            chosen = high
            break
    pieces = _cut_at_pooling(model, units, chosen)
    if len(pieces) > 1:
        return pieces
    if len(chosen) <= PARTS or (len(chosen) <= MOST_STAGES and not _alike(model, chosen)):
        return chosen
    edges = [round(part * len(chosen) / PARTS) for part in range(PARTS + 1)]
    return [sum(chosen[start:end], ()) for start, end in pairwise(edges)]


def _cut_at_pooling(model: nn.Module, units: list[Unit], chosen: list[Unit]) -> list[Unit]:
    pieces: list[Unit] = [()]
    for unit in units:
        if unit in chosen:
            pieces[-1] += unit
        elif "Pool" in type(_part(model, unit[0])).__name__ and pieces[-1]:
            pieces.append(())
    return [piece for piece in pieces if piece]


def _alike(model: nn.Module, units: list[Unit]) -> bool:
    """Return whether all units are of one class and hold parameters of the same shapes."""

    def looks(unit: Unit) -> tuple:
        module = _part(model, unit[0])
        shapes = tuple(tuple(parameter.shape) for parameter in module.parameters())
        return len(unit), type(module), shapes

    return len({looks(unit) for unit in units}) == 1


def _height(module: nn.Module) -> int:
    """Return how deep the modules with parameters are nested below this one."""
    heights = [_height(c) + 1 for c in module.children() if any(True for _ in c.parameters())]
    return max(heights, default=0)


def _weighty(units: list[Unit], names: list[str]) -> list[Unit]:
    return [unit for unit in units if _count(unit, names)]


def _share(units: list[Unit], names: list[str]) -> float:
    return sum(_count(unit, names) for unit in units) / max(1, len(names))


def _count(modules: Unit | list[str], names: list[str]) -> int:
    return sum(is_below(name, modules) for name in names)


def is_below(name: str, modules: Unit | list[str]) -> bool:
    """Return whether a parameter belongs to one of the named modules or what they hold."""
    return any(name.startswith(f"{module}.") for module in modules)
