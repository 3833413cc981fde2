"""The last layer of a classifier: found by one forward, and proved to be what Eq. 9 needs.

The closed form of the last layer holds where ``logits = W x + b`` with one feature vector ``x`` a
sample that does not itself depend on ``W``. Both are checked on values, with the model's own
``W`` and with one drawn at random, so that a head that starts at zero proves nothing by accident.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

from gradscore.errors import InvalidArgument, ModelError
from gradscore.uses import check_eval_mode, trial_images

LINEAR_LIKE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
REASONS = 2
"""How many of the layers nearest to the logits are told why they are not the head."""


@dataclass(frozen=True)
class Head:
    """The last layer of a classifier.

    Attributes:
        module: Name of the Linear or 1x1 convolution whose output is the logits, or None.
        weights: Names of the parameters that make up the group ``last``.
        bias: Name of its bias, or None.
        closed_form: Whether ``logits = W x + b`` was proved, so that Eq. 9 holds.
        reason: Why it was not; empty if it was.
    """

    module: str | None
    weights: tuple[str, ...]
    bias: str | None
    closed_form: bool
    reason: str = ""


@dataclass
class Observation:
    """The input of the last layer in the latest forward, ``[batch, in_features]``."""

    _input: list[Tensor] = field(default_factory=list)

    @property
    def features(self) -> Tensor:
        """Return the features, detached, in the type that the model computed them in.

        Raises:
            ModelError: If no forward has passed through the last layer.
        """
        if not self._input:
            raise ModelError("Expected a forward through the last layer, there was none.")
        return self._input[-1].detach().flatten(1)


@dataclass(frozen=True)
class _Call:
    name: str
    module: nn.Module
    input: Tensor


def check_logits(output: Any, batch: int) -> Tensor:
    """Return a model's output if it is a matrix of logits.

    Args:
        output: What the model returned.
        batch: Number of samples that went in.

    Raises:
        ModelError: If it is anything but a floating tensor ``[batch, classes]``.
    """
    if isinstance(output, Tensor):
        if output.ndim == 2 and len(output) == batch and output.is_floating_point():
            return output
        got = f"a {output.dtype} tensor {list(output.shape)}"
    else:
        got = f"a {type(output).__name__}"
    raise ModelError(
        f"Expected the model to return logits [{batch}, classes] for {batch} images, got {got}: "
        "wrap it in a module that does."
    )


def find_head(model: nn.Module, images: Tensor) -> Head:
    """Return the last layer of a classifier, found by two forwards on a small batch.

    Args:
        model: Classifier in evaluation mode; left as it is.
        images: Its input, shape ``[batch, ...]``; two samples are enough.

    Returns:
        The head. Where no layer's ``W x + b`` is the logits (pooling, ReLU or averaging follows
        it), ``closed_form`` is False, and ``weights`` names the weights of the layers with one
        output a class that the forward ends with, or else of the last layer that it uses.

    Raises:
        ModelError: If the model raises an error, does not return logits ``[batch, classes]``, has
            no parameters, or has layers that are random or mix samples, as those in train mode.
        InvalidArgument: If the logits are NaN: they tell nothing of the head.
    """
    check_eval_mode(model)
    logits, calls = _forward(model, images, {})
    if logits.isnan().any():
        raise InvalidArgument("Expected images with finite logits, got logits that are NaN.")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if not names:
        raise ModelError("Expected a model with parameters, got one without.")
    reasons = []
    for call in reversed(calls):
        if _outputs(call.module) != logits.shape[1]:
            continue
        fault = _fault(model, images, call, calls, logits)
        if not fault:
            bias = names.get(id(call.module.bias)) if call.module.bias is not None else None
            return Head(call.name, (names[id(call.module.weight)],), bias, True)
        reasons.append(f"{call.name}: {fault}")
    if not reasons:
        reasons = [f"no Linear or 1x1 convolution with {logits.shape[1]} outputs was used"]
    weights = _last_weights(model, calls, logits.shape[1])
    return Head(None, weights, None, False, "; ".join(reasons[:REASONS]))


@contextmanager
def observe_features(
    model: nn.Module, head: Head, samples: int | None = None
) -> Iterator[Observation]:
    """Observe the last layer's input while the context is open, by one hook on that layer.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    >>> images = torch.ones(2, 1, 2, 2)
    >>> with observe_features(model, find_head(model, images)) as observed:
    ...     logits = model(images)
    >>> observed.features.shape
    torch.Size([2, 4])

    Args:
        model: The classifier whose head it is.
        head: What :func:`find_head` found.
        samples: Observe only forwards of so many samples; None observes every one. (Recording
            the uses of parameters may add a forward of one sample.)

    Yields:
        An object whose ``features`` are those of the latest forward, ``[batch, in_features]``.

    Raises:
        ModelError: If the head has no closed form, and so no features; the reason is given.
    """
    if not head.closed_form or head.module is None:
        raise ModelError(f"The last layer has no features to observe: {head.reason}.")
    observation = Observation()

    def keep(module: nn.Module, args: tuple, output: Any) -> None:
        # No operation on the tensor here: a recorder of uses would see it as the model's own.
        if samples is None or len(args[0]) == samples:
            observation._input[:] = [args[0]]

    handle = model.get_submodule(head.module).register_forward_hook(keep)
    try:
        yield observation
    finally:
        handle.remove()


def _forward(
    model: nn.Module, images: Tensor, replaced: dict[str, Tensor]
) -> tuple[Tensor, list[_Call]]:
    """Run the model with some parameters replaced; return logits and linear-like calls."""
    calls: list[_Call] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, LINEAR_LIKE):

            def note(module: nn.Module, args: tuple, output: Any, name: str = name) -> None:
                if args and isinstance(args[0], Tensor):
                    calls.append(_Call(name, module, args[0].detach()))

            handles.append(module.register_forward_hook(note))
    try:
        with trial_images(images) as copy:
            output = functional_call(model, replaced, (copy,)) if replaced else model(copy)
    except Exception as error:  # whatever a model raises
        raise ModelError(
            f"Expected a model that takes {images.dtype} {list(images.shape)} on {images.device}, "
            f"got {type(error).__name__} from it: {str(error).partition(chr(10))[0]}. The size of "
            "images is set by --resize and --crop, or by the model's `preprocessing`."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return check_logits(output, len(images)), calls


def _outputs(module: nn.Module) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _fault(
    model: nn.Module, images: Tensor, call: _Call, calls: list[_Call], logits: Tensor
) -> str:
    """Return why a call is not ``logits = W x + b``, or nothing if it is proved to be."""
    module, x = call.module, call.input
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from other parameters (parametrised)"
    if sum(other.module is module for other in calls) > 1:
        return "it is used more than once in a forward"
    if module.weight[0].numel() != x.flatten(1).shape[1] or len(x) != len(images):
        return f"it works at several positions, on an input {list(x.shape)}"
    if not _is_product(module, x, module.weight, logits):
        return "the logits are not its output: something follows it"
    drawn = torch.randn(
        module.weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).to(module.weight)
    drawn *= module.weight[0].numel() ** -0.5
    name = f"{call.name}.weight" if call.name else "weight"
    other_logits, other_calls = _forward(model, images, {name: drawn})
    again = [other for other in other_calls if other.module is module]
    if len(again) != 1 or not _close(again[0].input, x):
        return "its input depends on its own weight, or the forward is not deterministic"
    if not _is_product(module, x, drawn, other_logits):
        return "the logits are not its output: something follows it"
    return ""


def _is_product(module: nn.Module, x: Tensor, weight: Tensor, logits: Tensor) -> bool:
    with torch.no_grad():
        return _close(linear(x.flatten(1), weight.flatten(1), module.bias), logits)


def _close(value: Tensor, other: Tensor) -> bool:
    """Compare to within what kernels of the type may differ by, TF32 included.

    Loose is enough: with a drawn weight, anything but the same function is off by whole values.
    """
    tolerance = {torch.float64: 1e-8, torch.float32: 2e-3}.get(other.dtype, 2e-2)
    scale = max(value.abs().max().item(), 1e-30)
    return torch.allclose(value.double(), other.double(), rtol=0, atol=tolerance * scale)


def _last_weights(model: nn.Module, calls: list[_Call], classes: int) -> tuple[str, ...]:
    """Return the weights of the trailing calls with one output a class, or of the last layer."""
    trailing: list[nn.Module] = []
    for call in reversed(calls):
        if trailing and _outputs(call.module) != classes:
            break
        trailing.insert(0, call.module)
        if _outputs(call.module) != classes:
            break
    ids = {
        id(parameter)
        for module in trailing
        for name, parameter in module.named_parameters()
        if name.split(".")[-1] != "bias" and not name.startswith("parametrizations.bias.")
    }
    found = tuple(name for name, parameter in model.named_parameters() if id(parameter) in ids)
    matrices = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    return found or tuple((matrices or [name for name, _ in model.named_parameters()])[-1:])
