"""Where the blocks of a network are, read from how its modules are nested and named.

From the root down, the first sequence of modules that holds most of the network's parameter
tensors is its trunk: siblings numbered under one name (``layer1``, ``layer2``, ...), or what a
Sequential or ModuleList holds. The trunk's stages are the blocks; a long row of small units has no
stages, and is cut at its pooling layers or, without any, in four equal parts by depth.
"""

import re
from collections.abc import Set
from itertools import pairwise

from torch import nn

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
NUMBERED = re.compile(r"(\D*?)_?(\d+)([a-z]?(?:_\w+)?)")
"""``layer1``, ``stage_2``, ``inception4b``, ``conv3_12``: a name, a number and what follows."""
PARTS = 4
"""How many parts the depth of a network without stages is cut into, as in the paper's Table 2."""
MOST_STAGES = 8
MAJORITY = 0.5

Unit = tuple[str, ...]
"""Names of the modules that make up one unit of the trunk."""


def find_blocks(model: nn.Module, head: Set[str]) -> list[Unit]:
    """Return the names of the modules of each block, in the order of depth.

    Args:
        model: Any network.
        head: Names of the last layer's weights and biases, which belong to no block.

    Returns:
        One tuple of module names a block; empty if the network has no such structure.
    """
    names = [name for name, _ in model.named_parameters() if name not in head]
    path, module = "", model
    while True:
        units = _numbered(path, module, names)
        if _share(units, names) < MAJORITY and isinstance(module, CONTAINERS):
            units = [(_join(path, name),) for name, _ in module.named_children()]
        if len(_weighty(units, names)) > 1 and _share(units, names) >= MAJORITY:
            return _staged(model, units, names)
        children = [_join(path, name) for name, _ in module.named_children()]
        if not children:
            return []
        path = max(children, key=lambda child: _count([child], names))
        module = _part(model, path)
        if _count([path], names) < MAJORITY * len(names):
            return []


def _numbered(path: str, module: nn.Module, names: list[str]) -> list[Unit]:
    """Return the numbered siblings that hold the most tensors, those of one number together."""
    families: dict[str, dict[int, list[str]]] = {}
    for name, _ in module.named_children():
        match = NUMBERED.fullmatch(name)
        if match and match[1]:
            numbers = families.setdefault(match[1], {})
            numbers.setdefault(int(match[2]), []).append(_join(path, name))
    for family, numbers in families.items():
        if family in module._modules:  # `repeat` comes before `repeat_1`
            numbers[-1] = [_join(path, family)]
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
        high = [unit for unit, h in zip(units, heights, strict=True) if h >= height]
        high = _weighty(high, names)
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


def _part(model: nn.Module, name: str) -> nn.Module:
    """Return a module by name; scripted modules have no ``get_submodule`` of their own."""
    return nn.Module.get_submodule(model, name)


def is_below(name: str, modules: Unit | list[str]) -> bool:
    """Return whether a parameter belongs to one of the named modules or what they hold."""
    return any(name.startswith(f"{module}.") for module in modules)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
