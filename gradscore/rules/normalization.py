"""Scale and shift of normalisation layers: batch (with fixed statistics), layer, group, RMS.

Weights may be normalised as well: they are then standardised by channel in every forward.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional as F

from gradscore.rules.convolution_tiles import in_tile_order
from gradscore.rules.rule import Call, Rule, Tile, Tiling, spans, sum_by_channel

BATCH = {
    F.batch_norm: (
        *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
    torch.batch_norm: (
        *("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
    ),
}
INSTANCE = {
    F.instance_norm: (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("use_input_stats", "momentum", "eps"),
    ),
}
GROUP = dict.fromkeys(
    (F.group_norm, torch.group_norm), ("input", "num_groups", "weight", "bias", "eps")
)
LAYER = dict.fromkeys(
    (F.layer_norm, torch.layer_norm), ("input", "normalized_shape", "weight", "bias", "eps")
)
RMS = dict.fromkeys((F.rms_norm, torch.rms_norm), ("input", "normalized_shape", "weight", "eps"))
_RESHAPES = ("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0")
TRAILING = {**LAYER, **RMS}
"""Those that normalise over trailing axes, each of whose entries has its own scale."""

_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default
_SUMS = (False, True, True)
"""Which of the gradients of input, scale and shift it computes."""


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


def scale_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return ``sum over positions of g * x_hat``, shape ``[samples, *weight.shape]``."""
    if _has_no_positions(call):
        return _summed(call, grad * normalized(call))
    return _from_one_reading(call, "weight", grad)


def shift_gradient(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the sum of the output gradient over positions, shape ``[samples, *bias.shape]``.

    Where the scale was not asked for, there is no input to read, nor need of one.
    """
    if call.arguments["input"].is_meta or _has_no_positions(call):
        return _summed(call, grad)
    return _from_one_reading(call, "bias", grad)


def _has_no_positions(call: Call) -> bool:
    """Say whether a single sample came without an axis to sum over."""
    return call.function in TRAILING and _leading(call) == 0


def _summed(call: Call, product: Tensor) -> Tensor:
    if call.function not in TRAILING:
        return sum_by_channel(product, call.samples)
    shape = tuple(call.arguments["normalized_shape"])
    positions = product.shape[: product.ndim - len(shape)].numel()
    return product.reshape(call.samples, positions // call.samples, *shape).sum(dim=1)


def _from_one_reading(call: Call, argument: str, grad: Tensor) -> Tensor:
    """Return the gradient of scale or shift: one reading of the data gives both."""
    if argument not in call.memo:
        call.memo["weight"], call.memo["bias"] = _scale_and_shift(call, grad)
    return call.memo.pop(argument)


def _scale_and_shift(call: Call, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = call.arguments["input"]
    if call.function in BATCH:
        mean, var = call.arguments["running_mean"], call.arguments["running_var"]
        return batch_norm_gradients(x, grad, mean, var, _eps(call), call.samples)
    if call.function in TRAILING:
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


def reads_saved(x: Tensor) -> bool:
    """Say whether a batch norm's backward reads a weight and what a forward saved, as on CUDA."""
    return not x.is_cpu


def batch_norm_gradients(
    x: Tensor, g: Tensor, mean: Tensor, var: Tensor, eps: float, samples: int
) -> tuple[Tensor, Tensor]:
    """Return the sums over positions of ``g (x - mean) / sqrt(var + eps)`` and of ``g``.

    The library's own backward, which reads input and output gradient once, gives them for every
    sample if the samples lie side by side in the channels.

    Args:
        x: Inputs, shape ``[samples * k, channels, ...]``.
        g: Output gradients, shaped as ``x``.
        mean: Fixed mean, shape ``[channels]``.
        var: Fixed variance, shape ``[channels]``.
        eps: What is added to the variance.
        samples: Number of samples.

    Returns:
        Gradients of scale and shift, shape ``[samples, channels]`` each.
    """
    rows, channels = x.shape[:2]
    positions = x.shape[2:].numel()
    # In half precision a variance may be out of range, and a mean off by more than x varies.
    exact = torch.promote_types(x.dtype, torch.float32)
    if mean.dtype != exact or var.dtype != exact:
        mean, var = mean.to(exact), var.to(exact)
    # Joined copies cost a fifth of what Tensor.repeat does.
    mean, var = torch.cat([mean] * rows), torch.cat([var] * rows)
    shape = 1, rows * channels, positions
    weight, saved_mean, saved_inverse = None, None, None
    if reads_saved(x):
        # Of the weight, which the input's gradient alone depends on, no value is of matter.
        weight, saved_mean, saved_inverse = var, mean, (var + eps).rsqrt_()
    given = weight, mean, var, saved_mean, saved_inverse, False, eps, _SUMS
    _, scale, shift = _batch_norm_backward(g.reshape(shape), x.reshape(shape), *given)
    if rows == samples:
        return scale.view(samples, channels), shift.view(samples, channels)
    return tuple(sums.view(samples, -1, channels).sum(dim=1) for sums in (scale, shift))


def scale_and_shift_gradients(
    x: Tensor,
    g: Tensor,
    normalize: Callable[[Tensor], Tensor],
    dims: tuple[int, ...],
    samples: int,
) -> tuple[Tensor, Tensor]:
    """Return the sums over some axes of ``g * normalize(x)`` and of ``g``, a tile at a time.

    Args:
        x: Inputs, shape ``[samples * k, ...]``, of which samples do not mix.
        g: Output gradients, shaped as ``x``.
        normalize: The normalisation without scale and shift, of any number of samples.
        dims: The axes of ``[samples, k, ...]`` that share one scale, ``k`` among them.
        samples: Number of samples.

    Returns:
        Gradients of scale and shift, shape ``[samples, ...]`` without ``dims``.
    """
    x, g = (tensor.unflatten(0, (samples, -1)) for tensor in (x, g))
    step = Tiling.of(x, samples, 1, x[:1].numel()).samples
    scales, shifts = [], []
    for part in spans(samples, step):
        shifts.append(g[part].sum(dims))
        normalized = normalize(x[part].flatten(0, 1)).view(g[part].shape)
        scales.append(normalized.mul_(g[part]).sum(dims))
    return torch.cat(scales), torch.cat(shifts)


@dataclass(frozen=True)
class Standardisation:
    """How a standardised weight is derived from its parameter.

    Networks such as BiT standardise each output channel's weights in every forward, written as
    batch norm with the statistics of its input: ``w^ = (w - mean w) / s`` with
    ``s = sqrt(var w + eps)``, ``var`` biased. From the gradient ``g`` with respect to ``w^``
    follows, by channel, ``(g - mean g - w^ mean(g w^)) / s`` (Ioffe & Szegedy, ICML 2015,
    Section 3), which needs no more than the tile of ``g`` that is in cache.

    Attributes:
        weight: The standardised weight, shape ``[channels, ...]``, detached.
        inverse: ``1 / s`` of each channel, shape ``[channels]``.
    """

    weight: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, derived: Tensor) -> "Standardisation | None":
        """Return how ``derived`` was standardised by channel, or ``None`` if not, or not so.

        It is when its graph is a training-mode batch norm, without scale and shift, of a
        parameter of the same shape, with one image and the parameter's first axis as channels.
        """
        node = _behind_reshapes(derived.grad_fn)
        if node is None or node.name() != "NativeBatchNormBackward0":
            return None
        if not node._saved_training or node._saved_weight is not None:
            return None
        origin = _behind_reshapes(node.next_functions[0][0])
        parameter = getattr(origin, "variable", None)
        if parameter is None or parameter.shape != derived.shape:
            return None
        if node._saved_input.shape[:2] != (1, len(derived)):
            return None
        return cls(derived.detach(), node._saved_result2)

    def pull_back(self, tile: Tile) -> Tensor:
        """Return the gradient with respect to the parameter, in the memory of the tile."""
        g = tile.gradient
        w = in_tile_order(self.weight[tile.channels], rows=g.shape[1])
        entries = g.shape[1] * g.shape[3]
        along = (g * w).sum(dim=(1, 3), keepdim=True).div_(-entries)
        mean = g.mean(dim=(1, 3), keepdim=True)
        inverse = self.inverse[tile.channels, None]
        return g.sub_(mean).addcmul_(w, along).mul_(inverse)


def _behind_reshapes(node: Node | None) -> Node | None:
    while node is not None and node.name() in _RESHAPES:
        node = node.next_functions[0][0]
    return node


def scale_alone(name: str, trailing: bool = False) -> dict[str, Rule]:
    """Return the rule for the scale of a normalisation, by argument."""
    return {"weight": Rule(name, scale_gradient, trailing=trailing)}


def scale_and_shift(name: str, trailing: bool = False) -> dict[str, Rule]:
    """Return the rules for the scale and the shift of a normalisation, by argument."""
    shift = Rule(f"{name} bias", shift_gradient, reads_data=False, trailing=trailing)
    return {**scale_alone(name, trailing), "bias": shift}
