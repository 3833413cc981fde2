"""The last layer of a classifier: found by one forward, and checked to be what Eq. 9 needs.

The closed form of the last layer holds where ``logits = W x + b`` with one feature vector ``x`` a
sample that does not itself depend on ``W``. Both are checked on values, with the model's own
``W`` and with one drawn at random, so that a head that starts at zero does not pass by accident;
and the forward is recorded, which shows whether ``W`` is used elsewhere.
"""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gradscore.capture import autocast_type, record_forward, tie_parameters
from gradscore.errors import InvalidArgument
from gradscore.graph import drawn_like
from gradscore.layers.head_weights import gradient_fault, last_weights
from gradscore.network import (
    check_eval_mode,
    check_independence,
    dry_run,
    observe,
    remembered,
    wrap_forward_errors,
)
from gradscore.outputs import logits_of

LINEAR_LIKE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-5}
"""Error of a matrix product by type, as a part of a row's largest entry; 2e-2 for all others."""
TF32 = 2e-3
"""The same for float32 where the matrix units of a GPU, or a setting, may round to TF32."""

FOLLOWED = "the logits are not its output: something follows it"
REASONS = 2
"""How many of the layers nearest to the logits are named with why they are not the head."""


@dataclass(frozen=True)
class Head:
    """The last layer of a classifier.

    Attributes:
        module: Name of the Linear or 1x1 convolution whose output is the logits, or None.
        weights: Names of the parameters that make up the group ``last``: the weight; of one to
            which an adapter adds, that one; of one that is computed, what it is computed from.
        bias: Name of its bias, or None.
        closed_form: Whether ``logits = W x + b`` was found to hold, so that Eq. 9 holds.
        reason: Why it was not; empty if it was.
    """

    module: str | None
    weights: tuple[str, ...]
    bias: str | None
    closed_form: bool
    reason: str = ""


@dataclass(frozen=True)
class _Call:
    name: str
    module: nn.Module
    input: Tensor
    autocast: torch.dtype | None


def head_of(model: nn.Module, images: Tensor) -> Head:
    """Return the last layer as :func:`find_head` does, once for a state of the model.

    Args:
        model: Classifier in evaluation mode; left as it is.
        images: Its input, shape ``[batch, ...]``; two samples are enough.

    Raises:
        ModelError: As :func:`find_head` does.
        InvalidArgument: As it does.
    """
    return remembered(find_head, model, images)


def find_head(model: nn.Module, images: Tensor) -> Head:
    """Return the last layer of a classifier, found by a few forwards on a small batch.

    Args:
        model: Classifier in evaluation mode; left as it is.
        images: Its input, shape ``[batch, ...]``; two samples are enough.

    Returns:
        The head. Where no layer's ``W x + b`` is the logits (pooling, ReLU or averaging follows
        it), ``closed_form`` is False, and ``weights`` names the weights of the layers with one
        output a class that the forward ends with, or else of the last layer that it uses.

    Raises:
        ModelError: If the model raises an error, does not return logits ``[batch, classes]``, has
            no parameters, or is random or mixes samples, as layers in train mode do; if its logits
            carry no gradient; or if no parameter has the gradient of the last layer's weight, as
            with some adapters.
        InvalidArgument: If the logits are NaN: they tell nothing of the head.
    """
    check_eval_mode(model)
    logits, calls = _forward(model, images)
    if logits.isnan().any():
        raise InvalidArgument("Expected images with finite logits, got logits that are NaN.")
    check_independence(model, images)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
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
    weights = last_weights(model, images, logits.shape[1])
    return Head(None, weights, None, False, "; ".join(reasons[:REASONS]))


def _forward(
    model: nn.Module, images: Tensor, instead: Mapping[nn.Module, Tensor] = MappingProxyType({})
) -> tuple[Tensor, list[_Call]]:
    """Run the model, some modules' outputs replaced; return logits and linear-like calls."""
    calls: list[_Call] = []
    linear_like = {n: m for n, m in model.named_modules() if isinstance(m, LINEAR_LIKE)}

    def note(name: str, args: tuple, output: Any) -> Any:
        module = linear_like[name]
        if args and isinstance(args[0], Tensor):
            calls.append(_Call(name, module, args[0].detach(), autocast_type(images)))
        return instead[module].view_as(output).clone() if module in instead else None

    with (
        dry_run(model, images) as own,
        observe(linear_like, note),
        wrap_forward_errors(model, images),
    ):
        output = model(own)
    return logits_of(output, len(images)), calls


def _outputs(module: nn.Module) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _fault(
    model: nn.Module, images: Tensor, call: _Call, calls: list[_Call], logits: Tensor
) -> str:
    """Return why a call is not ``logits = W x + b``, or nothing if it is."""
    module, x = call.module, call.input
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return "its weight is computed from other parameters (parametrised)"
    if sum(other.module is module for other in calls) > 1:
        return "it is used more than once in a forward"
    if module.weight[0].numel() != x.flatten(1).shape[1] or len(x) != len(images):
        return f"it works at several positions, on an input {list(x.shape)}"
    if not is_product(module, x, module.weight, logits):
        return FOLLOWED
    if not _multiplies(model, call):
        return FOLLOWED
    drawn = drawn_like(logits)
    if not torch.equal(_forward(model, images, {module: drawn})[0], drawn):
        return FOLLOWED
    selected = {f"{call.name}.weight".lstrip("."): module.weight}
    with torch.inference_mode(False):
        forward = record_forward(model, images.clone(), selected)
    groups = tie_parameters(forward, selected)
    if not groups:
        return "its weight gets no gradient, as under torch.no_grad()"
    if forward.uncovered or forward.differentiates or len(groups[0].arguments) != 1:
        return "its weight is used more than once in a forward"
    return gradient_fault(model, call.name, images)


def _multiplies(model: nn.Module, call: _Call) -> bool:
    """Say whether a layer of the class of a linear one is linear, with a weight drawn for it."""
    module, x, cast = call.module, call.input, call.autocast
    drawn = drawn_like(module.weight) * module.weight[0].numel() ** -0.5
    other = copy(module)
    other._parameters = {**module._parameters, "weight": nn.Parameter(drawn, requires_grad=False)}
    with dry_run(model, x) as own, torch.autocast(x.device.type, cast, cast is not None):
        return is_product(module, x, drawn, other(own).flatten(1))


def is_product(module: nn.Module, x: Tensor, weight: Tensor, logits: Tensor) -> bool:
    """Say whether ``logits [batch, classes]`` are ``W x + b``.

    Args:
        module: The layer, whose bias is taken.
        x: Its input, shape ``[batch, ...]``.
        weight: The weight to multiply with, shape ``[classes, ...]``.
        logits: What is compared, to within what kernels may differ by, TF32 included.
    """
    common = torch.promote_types(x.dtype, weight.dtype)
    bias = None if module.bias is None else module.bias.to(common)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        product = linear(x.flatten(1).to(common), weight.flatten(1).to(common), bias)
    tolerance = max(TOLERANCES.get(dtype, 2e-2) for dtype in (x.dtype, weight.dtype, logits.dtype))
    plain = x.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    if tolerance == TOLERANCES[torch.float32] and not plain:
        tolerance = TF32
    # Small entries are sums of large terms, the bias among them.
    scale = product.abs().amax(dim=1, keepdim=True) + (0 if bias is None else bias.abs().max())
    return bool(((product - logits).abs() <= tolerance * scale).all())
