"""Norms of per-sample gradients of normalisation layers' scales, a tile of input at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradscore.rules.tile_forms import Tiling, abs_norms, spans


def batch_norm_weight_norms(
    x: Tensor,
    g: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    samples: int,
    orders: Sequence[float],
) -> Tensor:
    """Return the norms of ``sum over positions of g (x - mean) / sqrt(var + eps)``.

    The library's own backward, which reads input and output gradient once, gives them for every
    sample if the samples lie side by side in the channels.

    Args:
        x: Inputs, shape ``[samples * k, channels, ...]``.
        g: Output gradients, shaped as ``x``.
        mean: Fixed mean, shape ``[channels]``.
        var: Fixed variance, shape ``[channels]``.
        eps: What is added to the variance.
        samples: Number of samples.
        orders: Orders of the norm.

    Returns:
        Norms, shape ``[samples, len(orders)]``.
    """
    rows, channels = x.shape[:2]
    positions = x.shape[2:].numel()
    gradient = torch.ops.aten.native_batch_norm_backward(
        g.reshape(1, rows * channels, positions),
        x.reshape(1, rows * channels, positions),
        x.new_ones(rows * channels),
        mean.to(x.dtype).repeat(rows),
        var.to(x.dtype).repeat(rows),
        None,
        None,
        False,
        eps,
        (False, True, False),
    )[1]
    return abs_norms(gradient.reshape(samples, -1, channels).sum(dim=1), orders)


def scale_norms(
    x: Tensor,
    g: Tensor,
    normalize: Callable[[Tensor], Tensor],
    dims: tuple[int, ...],
    samples: int,
    orders: Sequence[float],
) -> Tensor:
    """Return the norms of ``sum over dims of g * normalize(x)`` where samples do not mix.

    Args:
        x: Inputs, shape ``[samples * k, ...]``.
        g: Output gradients, shaped as ``x``.
        normalize: The normalisation without scale and shift, of any number of samples.
        dims: The axes of ``[samples, k, ...]`` that share one scale, ``k`` among them.
        samples: Number of samples.
        orders: Orders of the norm.

    Returns:
        Norms, shape ``[samples, len(orders)]``.
    """
    x, g = (tensor.unflatten(0, (samples, -1)) for tensor in (x, g))
    step = Tiling.of(x, samples, 1, x[:1].numel()).samples
    parts = []
    for part in spans(samples, step):
        normalized = normalize(x[part].flatten(0, 1)).view(g[part].shape)
        if normalized.dtype == g.dtype:
            normalized = normalized.mul_(g[part])
        else:
            normalized = normalized * g[part]
        parts.append(normalized.sum(dims))
    return abs_norms(torch.cat(parts), orders)
