"""Features, observed while the model runs: what enters the last layer, and what stages put out.

The stages are the blocks of :mod:`gradscore.layers.groups`, those that ``block1``, ``block2`` ...
name among the groups of parameters. What they put out is averaged over space or tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import inf, log
from typing import Any

import torch
from torch import Tensor, nn

from gradscore.errors import ModelError
from gradscore.layers.groups import find_blocks, head_biases
from gradscore.layers.head import LINEAR_LIKE, Head, is_product
from gradscore.network import check_unhooked, force_eager, observe


@dataclass
class Observation:
    """The input of the last layer in the latest forward, ``[batch, in_features]``.

    Attributes:
        name: Name of the last layer.
        module: The layer.
    """

    name: str
    module: nn.Module
    _input: Tensor | None = None
    _output: Tensor | None = None
    _plain: bool = False

    @property
    def features(self) -> Tensor:
        """Return the features, detached, in the type that the model computed them in.

        Raises:
            ModelError: If no forward has passed through the last layer.
        """
        if self._input is None:
            raise ModelError("Expected a forward through the last layer, there was none.")
        return self._input.flatten(1)

    def note(self, x: Tensor, output: Tensor) -> None:
        """Keep what entered and what left the layer."""
        # Copies, for the model may write into either. And unseen by a recorder of the forward,
        # which would take them for the model's own.
        with torch.no_grad(), torch._C.DisableTorchFunction():
            self._input, self._output = x.detach().clone(), output.detach().clone()
        self._plain = self._computes_as_its_class()

    def explains(self, logits: Tensor) -> bool:
        """Say whether ``logits [batch, classes]`` of the latest forward are ``W x + b``.

        The layer was found to be ``W x + b``, and the logits to be its output. What follows it
        may only show for some images, so that each batch of logits has to be its output bit for
        bit. Only a layer with a forward or hooks of its own is multiplied again, in rows that
        are finite.
        """
        logits, x, output = logits.detach(), self.features, self._output.flatten(1)
        if output.shape != logits.shape:
            return False
        if not torch.allclose(output.to(logits.dtype), logits, rtol=0, atol=0, equal_nan=True):
            return False
        if self._plain:
            return True
        finite = logits.isfinite().all(dim=1) & x.isfinite().all(dim=1)
        return is_product(self.module, x[finite], self.module.weight, logits[finite])

    def _computes_as_its_class(self) -> bool:
        module = self.module
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        everywhere = nn.modules.module._global_forward_hooks
        only_ours = hooks == 1 and not everywhere
        return type(module) in LINEAR_LIKE and "forward" not in vars(module) and only_ours

    def check(self, logits: Tensor) -> None:
        """Refuse logits of the latest forward that are not ``W x + b``.

        Raises:
            ModelError: If the layer does not explain them.
        """
        if not self.explains(logits):
            raise ModelError(
                f"Expected the logits to be the output of layer {self.name!r} for every image, as "
                "they are for the first, got others: something follows it that shows for some."
            )


@contextmanager
def observe_features(model: nn.Module, head: Head) -> Iterator[Observation]:
    """Observe the last layer's input while the context is open, by one hook on that layer.

    Forwards that only find something out about the model are not observed.

    >>> import torch
    >>> from gradscore.layers.head import find_head
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    >>> images = torch.ones(2, 1, 2, 2)
    >>> with observe_features(model, find_head(model, images)) as observed:
    ...     logits = model(images)
    >>> observed.features.shape
    torch.Size([2, 4])

    Args:
        model: The classifier whose head it is.
        head: What :func:`find_head` found.

    Yields:
        An object whose ``features`` are those of the latest forward, ``[batch, in_features]``.

    Raises:
        ModelError: If the head has no closed form, and so no features; the reason is given. If
            there is a hook on the gradient of its weight.
    """
    if not head.closed_form or head.module is None:
        raise ModelError(f"The last layer has no features to observe: {head.reason}.")
    observation = Observation(head.module, model.get_submodule(head.module))
    check_unhooked(head.weights[0], observation.module.weight)

    def keep(name: str, args: tuple, output: Any) -> None:
        observation.note(args[0], output)

    # A compiled forward may call no hook.
    with force_eager(), observe({head.module: observation.module}, keep):
        yield observation


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
    model: nn.Module, stages: Mapping[str, str], images: Tensor, *, detach: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Observe what the stages put out in forwards of these images.

    Args:
        model: The network.
        stages: Stage to the module whose output it is.
        images: The batch, whose size and proportions tell which axes are what.
        detach: Whether the means are no part of the graph, nor of what a recorder sees.

    Yields:
        Stage to features ``[batch, channels]`` of the latest forward, at least float32.
    """
    found: dict[str, Tensor] = {}
    unseen = torch._C.DisableTorchFunction() if detach else nullcontext()

    def keep(stage: str, args: tuple, output: Any) -> None:
        if isinstance(output, tuple | list) and output:
            output = output[0]
        if isinstance(output, Tensor) and output.ndim > 1 and len(output) == len(images):
            # At once, and never a view: what follows may write into the output.
            with unseen:
                found[stage] = pool(output.detach() if detach else output, images)

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
