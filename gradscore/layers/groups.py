"""Named groups of a model's parameters: stem, block1 ..., neck, last, all; and their selection.

Every parameter belongs to exactly one of stem, the blocks, neck and ``last``, but for the bias of
the last layer: as in the paper it is in none of them, and only in ``all``.
"""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from gradscore.errors import InvalidArgument, ModelError
from gradscore.layers.blocks import find_blocks, is_below
from gradscore.layers.head import Head, head_of
from gradscore.network import remembered
from gradscore.selection import select

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
    overrides = overrides or {}
    home = _overridden(names, home, overrides)
    blocks = sorted({group for group in home.values() if group.startswith("block")}, key=_depth)
    order = dict.fromkeys(("stem", *blocks, *overrides, "neck", "last"))
    groups = {
        group: tuple(name for name in names if home.get(name) == group)
        for group in order
        if group in home.values()
    }
    return groups | {"all": tuple(names)}


def head_biases(head: Head) -> set[str]:
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
            model, images = self._model, self._images
            if _structure_of(model) != self._structure:
                raise ModelError(
                    "Expected the model that the gradients are of, got one with parts replaced; "
                    "ask for the norms again, or for their groups before the model is changed."
                )
            question = parameter_groups, images.shape[1:], images.dtype
            self._found = remembered(
                model, question, lambda: parameter_groups(model, head_of(model, images))
            )
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


def _structure_of(model: nn.Module) -> tuple[tuple[str, int], ...]:
    """Return names and identities of modules and parameters: a replaced part has another."""
    return tuple(
        (name, id(part)) for name, part in (*model.named_modules(), *model.named_parameters())
    )


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
