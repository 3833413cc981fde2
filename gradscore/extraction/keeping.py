"""What enters chosen modules, kept so that the rest of the network can be run again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gradscore.errors import InvalidArgument, ModelError
from gradscore.extraction.replay import TOLERANCE, Tail, check_replay, tail_parameters
from gradscore.network import observe
from gradscore.outputs import logits_of
from gradscore.run import PassInfo


@contextmanager
def observe_inputs(
    model: nn.Module, passes: Sequence[PassInfo], images: Tensor
) -> Iterator[dict[str, Tensor]]:
    """Observe what enters some modules in the forward of these images.

    Args:
        model: The network.
        passes: The ``keep`` passes.
        images: The batch; what enters with another number of samples is not kept.

    Yields:
        Pass name to activations ``[batch, ...]`` in the type to keep, once the forward has run.
    """
    found: dict[str, Tensor] = {}

    kept = {entry.name: entry.details for entry in passes}

    def keep(name: str, args: tuple, _: None) -> None:
        # Unseen by a recorder of the forward, which would take the copy for a part of it.
        with torch._C.DisableTorchFunction():
            if args and isinstance(args[0], Tensor) and len(args[0]) == len(images):
                dtype = getattr(torch, kept[name]["dtype"])
                found[name] = args[0].detach().to(dtype, copy=True)

    modules = {name: model.get_submodule(details["module"]) for name, details in kept.items()}
    with observe(modules, keep, inputs=True):
        yield found


def prove_replay(model: nn.Module, passes: Sequence[PassInfo], image: Tensor) -> None:
    """Refuse modules whose input does not determine the logits; note what lies behind the others.

    Args:
        model: The network, in evaluation mode.
        passes: The ``keep`` passes; their parameters and shape are filled in.
        image: One preprocessed image, shape ``[1, channels, height, width]``.

    Raises:
        InvalidArgument: If there is no such module or type.
        ModelError: If replaying from a module's input gives other logits.
    """
    for entry in passes:
        module, dtype = entry.details["module"], entry.details["dtype"]
        if dtype not in TOLERANCE:
            raise InvalidArgument(f"Expected a type of {' or '.join(TOLERANCE)}, got {dtype!r}.")
        if not module or module not in dict(model.named_modules()):
            children = ", ".join(name for name, _ in model.named_children())
            raise InvalidArgument(
                f"Expected a module of the model to keep, such as {children}, got {module!r}."
            )
        # Other than the blank image that replay runs on, and more than one of them.
        images = torch.cat([image, image.flip(-1) + 0.5])
        with torch.inference_mode(), observe_inputs(model, [entry], images) as kept:
            logits = logits_of(model(images), len(images))
        if entry.name not in kept:
            raise ModelError(
                f"The input of module {module!r} cannot be kept: it is no tensor with one entry "
                "a sample."
            )
        activations = kept[entry.name].clone()
        tail = Tail(model, module, image.shape[1:])
        check_replay(tail, activations, logits, dtype)
        with torch.inference_mode(False):
            entry.parameters = tail_parameters(tail, activations.clone().float())
        entry.details["shape"] = list(activations.shape[1:])
