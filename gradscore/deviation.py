"""Norm of the softmax's deviation from its target, row by row: the V of Eq. 9.

Three findings shape this module, each measured on a CPU with the logits in cache:

- ``torch.softmax`` is the fastest exponential of torch: 0.34 ns an entry for all its passes,
  where ``exp`` alone takes 0.6 and ``expm1`` 2.9. So it comes first for every row, in the type of
  the logits, and only rows whose digits it loses are done again in a wider type.
- A fresh result is paid for page by page: writing into a kept block is 3 times as fast. Blocks of
  a few MB stay in the outer cache and are large enough that waking a second thread does not count;
  where other processes keep the cores busy, each wake-up can cost a time slice.
- With few classes the vector units idle along a row. There the classes go first, and the rows
  become the long axis.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gradscore.norms import vector_norm
from gradscore.objective import uniform_deviation

BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Size of the rows worked on at once: what the outer cache, or a spare part of memory, holds."""

NARROW = 32
"""Most classes for which the rows become the long axis."""

NEAR_UNIFORM = {torch.float32: 0.05, torch.float64: 1e-5}
"""Below this mean deviation of ``C softmax`` from 1, subtracting the 1 leaves too few digits.

The entries carry rounding of a few units relative to themselves, so to 1 and more. With ``M`` the
power mean of the deviations, the norm is off by a few units times ``1 + 1/M``: at these bounds by
less than 1e-5 in float32 and 1e-10 in float64.
"""

NEAR_ONE_HOT = 1e-30
"""Below this share of all other classes together, float32 comes close to its smallest number."""


def block_rows(columns: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many rows of ``columns`` entries to work on at once, at least one."""
    budget = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cpu"])
    return max(1, budget // max(1, columns * dtype.itemsize))


def uniform_norm(logits: Tensor, p: float, temperature: float) -> Tensor:
    """Return ``|C softmax(f/T) - 1|_p`` of each row.

    Rows close to uniform are done again in float64, and in float64 the closest of them by
    :func:`~gradscore.objective.uniform_deviation`, which never subtracts the 1.

    Args:
        logits: Shape ``[batch, classes]``, floating point. Memory of a few MB is used beside it.
        p: Order of the norm, positive; below 1 everything is computed in float64.
        temperature: Softmax temperature ``T``, positive.

    Returns:
        Norms without unit, shape ``[batch]``, in at least float32.
    """
    classes = logits.shape[1]
    scale = torch.tensor(float(classes), dtype=torch.float64).pow(1 / p).item()

    def block_norm(f: Tensor, q: Tensor, dim: int) -> Tensor:
        # Rows sum to 1 but for softmax's running sum: their own mean is off by the same factor.
        mean = q.mean(dim=dim, keepdim=True)
        if p == 1:
            # They sum to zero, so that the positive ones are half: a pass less than |q - mean|.
            positive = torch.maximum(q, mean, out=q).mean(dim=dim, keepdim=True) - mean
            norm = (2 * classes * positive / mean).flatten()
        else:
            norm = vector_norm(q.sub_(mean), p, dim, work=q) / mean.flatten()
        near = (norm <= NEAR_UNIFORM[f.dtype] * scale).nonzero().squeeze(1)
        if len(near) and f.dtype == torch.float32:
            norm[near] = uniform_norm(f[near].double(), p, temperature).float()
        elif len(near):
            norm[near] = vector_norm(uniform_deviation(f[near], temperature), p, dim=1)
        return norm

    return _by_softmax(block_norm, logits, p, temperature)


def one_hot_norm(logits: Tensor, p: float, temperature: float) -> Tensor:
    """Return ``|softmax(f/T) - e_y|_p`` of each row, ``y`` its largest logit.

    The entry at ``y`` is the sum of the others: subtracting 1 from it would lose everything on a
    confident sample. Which of several equal logits is ``y`` does not change the norm.

    Args:
        logits: Shape ``[batch, classes]``, floating point. Memory of a few MB is used beside it.
        p: Order of the norm, positive; below 1 everything is computed in float64.
        temperature: Softmax temperature ``T``, positive.

    Returns:
        Norms without unit, shape ``[batch]``, in at least float32.
    """

    def block_norm(f: Tensor, q: Tensor, dim: int) -> Tensor:
        y = q.argmax(dim=dim, keepdim=True)
        top = q.gather(dim, y)
        others = q.scatter_(dim, y, 0).sum(dim=dim, keepdim=True)
        # In units of the others' sum, so that no power of a small entry underflows.
        q = q.scatter_(dim, y, others).div_(others.clamp_min(torch.finfo(q.dtype).tiny))
        share = (others / (others + top)).flatten()
        norm = vector_norm(q, p, dim, work=q) * share
        if f.dtype == torch.float32:
            near = (share <= NEAR_ONE_HOT).nonzero().squeeze(1)
            if len(near):
                norm[near] = one_hot_norm(f[near].double(), p, temperature).float()
        return norm

    return _by_softmax(block_norm, logits, p, temperature)


def _by_softmax(
    block_norm: Callable[[Tensor, Tensor, int], Tensor],
    logits: Tensor,
    p: float,
    temperature: float,
) -> Tensor:
    """Fill the result with ``block_norm(f, q, dim)`` over blocks of rows.

    ``f`` are the block's logits ``[rows, classes]`` in the type worked in, ``q`` its softmax, free
    to be overwritten, with the classes on axis ``dim``: ``[rows, classes]`` or, narrow, the other
    way round.
    """
    rows, classes = logits.shape
    result_type = torch.promote_types(logits.dtype, torch.float32)
    dtype = torch.float64 if p < 1 else result_type
    step = min(block_rows(classes, dtype, logits.device), max(1, rows))
    scaled_block, softmax_block = logits.new_empty(2, step * classes, dtype=dtype)
    result = logits.new_empty(rows, dtype=result_type)
    for start in range(0, rows, step):
        f = z = logits[start : start + step].to(dtype)
        shape, dim = ((classes, len(f)), 0) if classes <= NARROW else (tuple(f.shape), 1)
        scaled = scaled_block[: f.numel()].view(shape)
        if dim == 0:
            z = torch.stack(f.unbind(1), out=scaled)
        if temperature != 1:
            # Centred first: f/T alone would round at the size of a common offset of the logits.
            z = torch.sub(z, z.amax(dim=dim, keepdim=True), out=scaled).div_(temperature)
        q = torch.softmax(z, dim, out=softmax_block[: f.numel()].view(shape))
        result[start : start + step] = block_norm(f, q, dim)
    return result
