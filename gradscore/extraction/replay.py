"""What enters chosen modules, kept; norms of them and of what follows, from what a run kept.

A pass made by ``extract(keep=(MODULE,))`` holds what entered MODULE. Only the rest of the network
is run again: what lies below sees one blank image, whose activations the kept ones replace. A
module is kept only where that gives the logits of the whole network (shortcuts around it would
not).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradscore.engine import part_norms
from gradscore.errors import InvalidArgument, ModelError, NotRecorded, RunError, reason_of
from gradscore.models import ModelSpec, create_model, weights_sha256
from gradscore.network import observe
from gradscore.objective import Objective
from gradscore.outputs import logits_of
from gradscore.run import PassInfo, RunStore, extract_command, keep_options, model_of
from gradscore.selection import differentiable_parameters, select

PREFIX = "network."
ROWS = 64
"""Rows run through the tail at once."""
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
"""How far replayed logits may be off, as a part of the largest, by the type kept."""


class Tail(nn.Module):
    """The part of a network from one module on, as a network of its own.

    Args:
        network: The whole network, in evaluation mode.
        module: Name of the module whose input replaces the images.
        input_shape: Shape of one preprocessed image.
    """

    def __init__(self, network: nn.Module, module: str, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.network, self.module, self.input_shape = network, module, tuple(input_shape)
        self.eval()

    def forward(self, activations: Tensor) -> Tensor:
        """Return the logits ``[batch, classes]`` for what enters the module, ``[batch, ...]``."""

        def replace(name: str, args: tuple, _: None) -> tuple:
            return (activations, *args[1:])

        blank = activations.new_zeros(1, *self.input_shape)
        module = self.network.get_submodule(self.module)
        with observe({self.module: module}, replace, inputs=True):
            return logits_of(self.network(blank), len(activations))


def check_replay(tail: Tail, activations: Tensor, logits: Tensor, dtype: str) -> None:
    """Raise unless a module's kept input gives the network's logits.

    Args:
        tail: The network from the module on.
        activations: What entered it, in the type kept, shape ``[batch, ...]``.
        logits: What the whole network returned, shape ``[batch, classes]``.
        dtype: ``float32`` or ``float16``.

    Raises:
        ModelError: If it does not.
    """
    why = "its output is not all that the logits depend on"
    try:
        with torch.inference_mode():
            replayed = tail(activations.to(logits.dtype))
    except (RuntimeError, ValueError) as error:
        replayed, why = logits.new_zeros(0), reason_of(error)
    bound = TOLERANCE[dtype] * logits.abs().max().clamp_min(1e-30)
    if replayed.shape != logits.shape or not ((replayed - logits).abs() <= bound).all():
        raise ModelError(f"The input of module {tail.module!r} cannot be kept: {why}.")


def tail_parameters(tail: Tail, activations: Tensor) -> tuple[str, ...]:
    """Return the parameters that act behind the kept activations, and nowhere before them.

    Args:
        tail: The network from the module on.
        activations: At least one sample, shape ``[batch, ...]``.
    """
    parameters = differentiable_parameters(tail.network)
    required = {name: parameter.requires_grad for name, parameter in parameters.items()}
    seen: list[Tensor] = []
    module = tail.network.get_submodule(tail.module)

    def keep(name: str, args: tuple, _: None) -> None:
        seen.append(args[0])

    try:
        for parameter in parameters.values():
            parameter.requires_grad_()
        with torch.enable_grad(), observe({tail.module: module}, keep, inputs=True):
            behind = _reached(tail(activations), parameters)
            before = _reached(seen[0], parameters)
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(required[name])
    return tuple(name for name in parameters if name in behind and name not in before)


def _reached(output: Tensor, parameters: dict[str, Tensor]) -> set[str]:
    if output.grad_fn is None:
        return set()
    values = list(parameters.values())
    gradients = torch.autograd.grad(output.sum(), values, allow_unused=True)
    return {name for name, g in zip(parameters, gradients, strict=True) if g is not None}


class Replay:
    """Norms of parameters behind a kept module, from what entered it.

    Args:
        store: A run with a pass ``keep-<module>``.
        module: The kept module.
        layers: Parameters of the module or above it: a group, a glob or a list.
        model: The network, or what the store's user calls it; by default what the run names,
            where that may be built unasked. Its weights are checked against the run's.

    Attributes:
        name: Name of the pass that holds the activations.
        parameters: Names of the ``K`` parameters.

    Raises:
        NotRecorded: If the run kept no such activations, or a parameter lies below the module.
        RunError: If the model is not that of the run.
    """

    def __init__(
        self,
        store: RunStore,
        module: str,
        layers: str | Sequence[str],
        model: nn.Module | str | None = None,
    ) -> None:
        self.name = f"keep-{module}"
        kept = store.info.passes.get(self.name)
        if kept is None:
            raise NotRecorded(
                f"The run {store.path} kept no input of {module!r}; record it with "
                f"{extract_command(store, *keep_options(module))}."
            )
        self.parameters = select(tuple(store.info.parameters), store.info.groups, layers)
        lacking = [name for name in self.parameters if name not in kept.parameters]
        if lacking:
            raise NotRecorded(
                f"Parameter {lacking[0]} does not lie behind the input of {module!r}; keep a "
                "module further below, or record norms with "
                f"{extract_command(store, '--layers', lacking[0])}."
            )
        self._tail = Tail(_same_model(store, model), module, store.info.input_shape)

    def norms(self, activations: Tensor, objective: Objective) -> Tensor:
        """Return the norms of each sample's gradients, never negated.

        Args:
            activations: What entered the module, shape ``[rows, ...]``.
            objective: The loss, and the order of the norm.

        Returns:
            Norms, shape ``[rows, K]``, float32.
        """
        parameters = differentiable_parameters(self._tail)
        selected = {name: parameters[PREFIX + name] for name in self.parameters}
        device = next(iter(selected.values())).device
        parts = activations.float().to(device).split(ROWS)
        return part_norms(self._tail, parts, selected, objective).norms.cpu()


def kept_pass(store: RunStore, parameters: Sequence[str]) -> PassInfo | None:
    """Return the pass of the kept module nearest to the output that ``parameters`` lie behind."""
    fitting = [
        entry
        for entry in store.info.passes.values()
        if entry.kind == "keep" and set(parameters) <= set(entry.parameters)
    ]
    return min(fitting, key=lambda entry: len(entry.parameters), default=None)


def _same_model(store: RunStore, model: Any) -> nn.Module:
    network = store.model if model is None else model
    if not isinstance(network, nn.Module):
        named = None if network is None else str(ModelSpec.parse(network))
        network = create_model(*model_of(store.path, store.info, named))
    digest = weights_sha256(network)
    if digest != store.info.weights_sha256:
        raise RunError(
            f"Expected the run's weights {store.info.weights_sha256}, got {digest}; give the "
            "model that the run was made with."
        )
    return network


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


def check_kept(model: nn.Module, passes: Sequence[PassInfo], image: Tensor) -> None:
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
