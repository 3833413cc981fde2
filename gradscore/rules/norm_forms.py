"""Per-sample gradients of normalisation layers' scale and shift, from one reading of the input."""

from collections.abc import Callable

import torch
from torch import Tensor

from gradscore.rules.tile_forms import Tiling, spans


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
    mean, var = mean.to(exact).repeat(rows), var.to(exact).repeat(rows)
    # A CPU has no need of a weight, nor of the statistics that a forward saves; CUDA reads them.
    _, scale, shift = torch.ops.aten.native_batch_norm_backward(
        g.reshape(1, rows * channels, positions),
        x.reshape(1, rows * channels, positions),
        torch.ones_like(mean),
        mean,
        var,
        mean,
        (var + eps).rsqrt(),
        False,
        eps,
        (False, True, True),
    )
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
