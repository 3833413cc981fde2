"""Scale and shift of normalisation layers: batch (with fixed statistics), layer, group, RMS."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gradscore.rules.norm_forms import batch_norm_gradients, scale_and_shift_gradients
from gradscore.rules.rule import Call, GradientForm, Rule
from gradscore.rules.tile_forms import abs_norms

SIGNATURES = {
    F.batch_norm: (
        *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
    torch.batch_norm: (
        *("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
    ),
    F.instance_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("use_input_stats", "momentum", "eps"),
    ),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    torch.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    torch.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    torch.rms_norm: ("input", "normalized_shape", "weight", "eps"),
}
BATCH, INSTANCE = (F.batch_norm, torch.batch_norm), (F.instance_norm,)
GROUP, LAYER = (F.group_norm, torch.group_norm), (F.layer_norm, torch.layer_norm)
RMS = (F.rms_norm, torch.rms_norm)


def normalized(call: Call) -> Tensor:
    """Return the input after normalisation, before scale and shift, shaped as the input."""
    x, eps = call.arguments["input"], _eps(call)
    if call.function in BATCH:
        mean, var = call.arguments["running_mean"], call.arguments["running_var"]
        return F.batch_norm(x, mean, var, training=False, eps=eps)
    if call.function in INSTANCE:
        own = call.get("use_input_stats", True)
        mean, var = (None, None) if own else (call.get("running_mean"), call.get("running_var"))
        return F.instance_norm(x, mean, var, use_input_stats=own, eps=eps)
    if call.function in GROUP:
        return F.group_norm(x, call.arguments["num_groups"], eps=eps)
    shape = call.arguments["normalized_shape"]
    if call.function in LAYER:
        return F.layer_norm(x, shape, eps=eps)
    return F.rms_norm(x, shape, eps=eps)


def _eps(call: Call) -> float | None:
    """Return what is added to the variance; of the RMS norm, None stands for the type's own."""
    return call.get("eps", None if call.function in RMS else 1e-5)


def channel_weight(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return ``sum over positions of g * x_hat``, shape ``[samples, channels]``."""
    return _over_positions(grad * normalized(call), call)


def channel_bias(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the sum of the output gradient over positions, shape ``[samples, channels]``."""
    return _over_positions(grad, call)


def trailing_weight(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return ``sum over positions of g * x_hat``, shape ``[samples, *normalized_shape]``."""
    return _over_leading(grad * normalized(call), call)


def trailing_bias(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the sum of the output gradient, shape ``[samples, *normalized_shape]``."""
    return _over_leading(grad, call)


def scale_and_shift_norms(
    call: Call, argument: str, grad: Tensor, orders: Sequence[float]
) -> Tensor | None:
    """Return norms of the gradient of scale or shift, shape ``[samples, len(orders)]``.

    Both come from one reading of input and output gradient. Where the scale was not asked for,
    there is no input to read, nor need of one; a lone sample may come without an axis to sum over.
    """
    if call.arguments["input"].is_meta:
        return None
    if call.function in (*LAYER, *RMS) and _leading(call) == 0:
        return None
    if argument not in call.memo:
        scale, shift = _scale_and_shift(call, grad)
        call.memo.update(weight=scale, bias=shift)
    return abs_norms(call.memo.pop(argument), orders)


def _scale_and_shift(call: Call, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = call.arguments["input"]
    if call.function in BATCH:
        mean, var = call.arguments["running_mean"], call.arguments["running_var"]
        return batch_norm_gradients(x, grad, mean, var, _eps(call), call.samples)
    if call.function in (*LAYER, *RMS):
        dims = tuple(range(1, 1 + _leading(call)))
    else:
        dims = (1, *range(3, x.ndim + 1))
    return scale_and_shift_gradients(x, grad, _normalization(call), dims, call.samples)


def _leading(call: Call) -> int:
    """Return the number of axes of the input before those that are normalised over."""
    return call.arguments["input"].ndim - len(call.arguments["normalized_shape"])


def _normalization(call: Call) -> Callable[[Tensor], Tensor]:
    """Return the normalisation that a call applies, as a function of some rows of its input."""
    return lambda x: normalized(replace(call, arguments={**call.arguments, "input": x}))


def _over_positions(product: Tensor, call: Call) -> Tensor:
    """Sum ``[samples * k, channels, *positions]`` to ``[samples, channels]``."""
    rows, channels = product.shape[:2]
    by_channel = product.reshape(rows, channels, product.shape[2:].numel()).sum(dim=2)
    return by_channel.reshape(call.samples, rows // call.samples, channels).sum(dim=1)


def _over_leading(product: Tensor, call: Call) -> Tensor:
    shape = tuple(call.arguments["normalized_shape"])
    leading = product.shape[: product.ndim - len(shape)].numel()
    return product.reshape(call.samples, leading // call.samples, *shape).sum(dim=1)


def _pair(
    name: str, weight: GradientForm, bias: GradientForm, trailing: bool = False
) -> dict[str, Rule]:
    norms = scale_and_shift_norms
    return {
        "weight": Rule(name, weight, norms, trailing=trailing),
        "bias": Rule(f"{name} bias", bias, norms, reads_data=False, trailing=trailing),
    }


_FAMILIES = (
    (BATCH, _pair("batch norm", channel_weight, channel_bias)),
    (INSTANCE, _pair("instance norm", channel_weight, channel_bias)),
    (GROUP, _pair("group norm", channel_weight, channel_bias)),
    (LAYER, _pair("layer norm", trailing_weight, trailing_bias, trailing=True)),
    (RMS, {"weight": Rule("rms norm", trailing_weight, scale_and_shift_norms, trailing=True)}),
)
RULES = {
    (function, argument): rule
    for functions, rules in _FAMILIES
    for function in functions
    for argument, rule in rules.items()
}
