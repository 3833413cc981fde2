"""What the stages of a network put out, averaged over space or tokens.

The stages are the blocks of :mod:`gradscore.layers.blocks`, those that ``block1``, ``block2`` ...
name among the groups of parameters.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf, log
from typing import Any

import torch
from torch import Tensor, nn

from gradscore.errors import ModelError
from gradscore.layers.blocks import find_blocks
from gradscore.layers.groups import head_biases
from gradscore.layers.head import Head
from gradscore.network import observe


def find_stages(model: nn.Module, head: Head, images: Tensor) -> dict[str, str]:
    """Return the module whose output is that of each stage, in the order of depth.

    It is the one of the stage's modules that a forward leaves last: a list of modules is never
    called itself.

    Args:
        model: The network, in evaluation mode.
        head: Its last layer.
        images: A batch of its input; two samples are enough.

    Returns:
        ``block1``, ``block2`` ... to the name of a module.

    Raises:
        ModelError: If no stages are found, the forward does not use one, or its output is no
            tensor with one entry a sample.
    """
    units = find_blocks(model, head_biases(head).union(head.weights))
    if not units:
        raise ModelError(
            "Expected a network with stages, found none among its modules: "
            f"{', '.join(name for name, _ in model.named_children()) or 'it has none'}."
        )
    members = {
        name: (f"block{number}", module)
        for number, unit in enumerate(units, start=1)
        for name, module in model.named_modules()
        if any(name == member or name.startswith(f"{member}.") for member in unit)
    }
    last: dict[str, str] = {}

    def left(name: str, args: tuple, output: Any) -> None:
        last[members[name][0]] = name

    with (
        torch.inference_mode(),
        observe({name: module for name, (_, module) in members.items()}, left),
    ):
        model(images)
    stages = {f"block{number}": ", ".join(unit) for number, unit in enumerate(units, start=1)}
    for stage, unit in stages.items():
        if stage not in last:
            raise ModelError(f"Expected the forward to use {stage} ({unit}), it does not.")
        stages[stage] = last[stage]
    with torch.inference_mode(), observe_stages(model, stages, images) as found:
        model(images)
    for stage, name in stages.items():
        if stage not in found:
            raise ModelError(
                f"Expected {stage} ({name}) to put out a tensor [{len(images)}, ...] for "
                f"{len(images)} images, it does not."
            )
    return stages


@contextmanager
def observe_stages(
    model: nn.Module, stages: Mapping[str, str], images: Tensor
) -> Iterator[dict[str, Tensor]]:
    """Observe what the stages put out in forwards of these images.

    Args:
        model: The network.
        stages: Stage to the module whose output it is.
        images: The batch, whose size and proportions tell which axes are what.

    Yields:
        Stage to features ``[batch, channels]`` of the latest forward, at least float32.
    """
    found: dict[str, Tensor] = {}

    def keep(stage: str, args: tuple, output: Any) -> None:
        if isinstance(output, tuple | list) and output:
            output = output[0]
        if isinstance(output, Tensor) and output.ndim > 1 and len(output) == len(images):
            # At once, and never a view: what follows may write into the output.
            found[stage] = pool(output, images)

    with observe({stage: model.get_submodule(name) for stage, name in stages.items()}, keep):
        yield found


def pool(output: Tensor, images: Tensor) -> Tensor:
    """Return the mean over space or tokens, shape ``[batch, channels]``.

    Args:
        output: ``[batch, channels, height, width]``, ``[batch, height, width, channels]``,
            ``[batch, tokens, channels]`` or ``[batch, channels]``. Of two pairs of axes, space is
            the one that has the images' proportions; the later one where both have.
        images: What it was computed from, shape ``[batch, channels, height, width]``.
    """
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    if output.ndim == 2:
        return output.clone()
    if output.ndim == 3:
        return output.mean(dim=1)
    first, second = _distortion(output.shape[1:3], images), _distortion(output.shape[2:4], images)
    if output.ndim == 4 and first < second:
        return output.mean(dim=(1, 2))
    return output.flatten(2).mean(dim=2)


def _distortion(shape: torch.Size, images: Tensor) -> float:
    """Return how far two axes are from the images' proportions, as a logarithm."""
    (high, wide), (tall, broad) = shape, images.shape[-2:]
    return abs(log(high * broad / (wide * tall))) if high and wide else inf
