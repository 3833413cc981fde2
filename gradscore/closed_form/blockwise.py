"""Norms of features and of softmax deviations by blocks of rows: the U and V of Eq. 9, fast.

Three findings shape this module, each measured on a CPU with the logits in cache:

- ``torch.softmax`` is the fastest exponential of torch: all its passes take half the time of one
  ``expm1``, which keeps the digits of a nearly uniform row. So it comes first, and only rows that
  need ``expm1`` are done again; at a high temperature, where all do, softmax is left out.
- A fresh result is paid for page by page: writing into a kept block is 3 times as fast. Blocks of
  a few MB stay in the outer cache and are large enough that waking a second thread does not count;
  where other processes keep the cores busy, each wake-up can cost a time slice.
- With few classes the vector units idle along a row. There the classes go first, and the rows
  become the long axis.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gradscore.norms import vector_norm
from gradscore.objective import Objective

BLOCK_BYTES = {"cpu": 6 << 20, "cuda": 256 << 20}
"""Size of the rows worked on at once: what the outer cache, or a spare part of memory, holds."""

NARROW = 32
"""Most classes for which the rows become the long axis."""

NEAR_UNIFORM = {torch.float32: 0.05, torch.float64: 1e-5}
"""Below this mean deviation of ``C softmax`` from 1, subtracting the 1 leaves too few digits.

The entries carry rounding of a few units relative to themselves, so to 1 and more. With ``M`` the
power mean of the deviations, the norm is off by a few units times ``1 + 1/M``: at these bounds by
less than 1e-5 in float32 and 1e-10 in float64.
"""

FLAT = 1.0
"""Largest spread of a row's ``f/T`` for which it is known beforehand to be close to uniform."""

NEAR_UNIFORM_EXACT = 0.5
"""The same for float32 where 1e-6 is asked for."""

NEAR_ONE_HOT = 1e-30
"""Below this share of all other classes together, float32 comes close to its smallest number."""


def block_rows(columns: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many rows of ``columns`` entries to work on at once, at least one."""
    budget = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cpu"])
    return max(1, budget // max(1, columns * dtype.itemsize))


def feature_norm(features: Tensor, p: float) -> Tensor:
    """Return ``|x|_p`` of each row.

    Args:
        features: Shape ``[batch, in_features]``, floating point.
        p: Order of the norm, positive.

    Returns:
        Norms in units of the features, shape ``[batch]``, in at least float32.
    """
    rows, columns = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    step = min(block_rows(columns, dtype, features.device), max(1, rows))
    work = features.new_empty(step, columns, dtype=dtype)
    result = features.new_empty(rows, dtype=dtype)
    for start in range(0, rows, step):
        x = features[start : start + step].to(dtype)
        result[start : start + step] = vector_norm(x, p, dim=1, work=work[: len(x)])
    return result


def deviation_norm(
    logits: Tensor, objective: Objective, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``|1 - C softmax(f/T)|_p`` of each row, or its one-hot counterpart.

    Arguments and result are those of :func:`uniform_norm` and :func:`one_hot_norm`.
    """
    norm = uniform_norm if objective.target == "uniform" else one_hot_norm
    return norm(logits, objective.p, objective.temperature, dtype)


def uniform_norm(
    logits: Tensor, p: float, temperature: float, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``|C softmax(f/T) - 1|_p`` of each row.

    Args:
        logits: Shape ``[batch, classes]``, floating point. Memory of a few MB is used beside it.
        p: Order of the norm, positive; below 1 everything is computed in float64.
        temperature: Softmax temperature ``T``, positive.
        dtype: What is returned: by default the logits' type, at least float32. Float64 tells
            confident rows apart, whose norms differ by less than float32 resolves.

    Returns:
        Norms without unit, shape ``[batch]``.
    """
    classes = logits.shape[1]
    scale = torch.tensor(float(classes), dtype=torch.float64, device="cpu").pow(1 / p).item()
    dtype = dtype or torch.promote_types(logits.dtype, torch.float32)
    working, softmax_norm, bound = dtype, _softmax_norm, NEAR_UNIFORM[dtype]
    widened = (logits.dtype, dtype) == (torch.float32, torch.float64) and logits.is_cpu
    if widened and p in (1, 2, math.inf) and classes > NARROW:
        working, softmax_norm, bound = torch.float32, _softmax_norm_of_others, NEAR_UNIFORM_EXACT

    def block_norm(f: Tensor, scaled: Tensor, work: Tensor, dim: int) -> Tensor:
        if temperature != 1:
            spread = f.amax(dim=dim) - f.amin(dim=dim)
            if spread.max() <= FLAT * temperature:
                centred = torch.sub(f, f.mean(dim=dim, keepdim=True), out=scaled)
                return _near_uniform_norm(centred.div_(temperature), p, dim)
        z = _divided(f, temperature, dim, out=scaled)
        norm = softmax_norm(torch.softmax(z, dim, out=work), p, dim)
        near = (norm <= bound * scale).nonzero().squeeze(1)
        if len(near):
            rows = z.index_select(1 - dim, near)
            rows = rows - (rows.logsumexp(dim=dim, keepdim=True) - math.log(classes))
            norm[near] = _near_uniform_norm(rows, p, dim).to(norm.dtype)
        return norm

    return _by_blocks(block_norm, logits, torch.float64 if p < 1 else working, dtype)


def _softmax_norm(q: Tensor, p: float, dim: int) -> Tensor:
    """Return ``|C q - 1|_p`` where that difference keeps its digits; ``q`` is overwritten."""
    # Rows sum to 1 but for softmax's running sum: their own mean is off by the same factor.
    mean = q.mean(dim=dim, keepdim=True)
    if p == 1:
        # They sum to zero, so that the positive ones are half: a pass less than |q - mean|.
        positive = torch.maximum(q, mean, out=q).mean(dim=dim, keepdim=True) - mean
        return (2 * q.shape[dim] * positive / mean).flatten()
    if p == 2:  # rows of which the squares are small are done again, as near uniform
        return q.sub_(mean).square_().sum(dim=dim).sqrt_() / mean.flatten()
    return vector_norm(q.sub_(mean), p, dim, work=q) / mean.flatten()


def _softmax_norm_of_others(q: Tensor, p: float, dim: int) -> Tensor:
    """Return ``|C q - 1|_p`` in float64, ``p`` 1, 2 or infinity, from ``q`` in float32.

    All classes but the largest are added up alone, so that a confident row's small shares keep
    their digits. ``q`` is overwritten.
    """
    classes = q.shape[dim]
    lowest = q.amin(dim=dim).double() if p == math.inf else None
    mean = q.mean(dim=dim, keepdim=True) if p == 1 else None
    # NumPy's is ten times as fast as torch's.
    largest = torch.from_numpy(q.numpy().argmax(axis=dim, keepdims=True))
    top = q.gather(dim, largest).flatten().double()
    total = q.scatter_(dim, largest, 0).sum(dim=dim).double() + top
    if p == 1:
        # The deviations sum to zero: twice those of the classes below 1/C.
        below = torch.minimum(q, mean, out=q).sum(dim=dim).double()
        return 2 * (classes - 1 - classes * below / total)
    if p == 2:
        squares = torch.square(q, out=q).sum(dim=dim).double() + top.square()
        return (classes**2 * squares / total.square() - classes).clamp_min_(0).sqrt_()
    return torch.maximum(classes * top / total - 1, 1 - classes * lowest / total)


def _near_uniform_norm(z: Tensor, p: float, dim: int) -> Tensor:
    """Return ``|C softmax(z) - 1|_p`` for small ``z``, which is overwritten; no 1 is subtracted.

    With ``m = expm1(z)`` the deviations are ``(m_j - mean m) / (1 + mean m)``.
    """
    m = z.expm1_()
    mean = m.mean(dim=dim, keepdim=True)
    return vector_norm(m.sub_(mean), p, dim, work=m) / (1 + mean).flatten()


def one_hot_norm(
    logits: Tensor, p: float, temperature: float, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``|softmax(f/T) - e_y|_p`` of each row, ``y`` its largest logit.

    The entry at ``y`` is the sum of the others: subtracting 1 from it would lose everything on a
    confident sample. Which of several equal logits is ``y`` does not change the norm.

    Args:
        logits: Shape ``[batch, classes]``, floating point. Memory of a few MB is used beside it.
        p: Order of the norm, positive; below 1 everything is computed in float64.
        temperature: Softmax temperature ``T``, positive.
        dtype: What is computed in and returned: by default the logits' type, at least float32.

    Returns:
        Norms without unit, shape ``[batch]``.
    """
    dtype = dtype or torch.promote_types(logits.dtype, torch.float32)

    def block_norm(f: Tensor, scaled: Tensor, work: Tensor, dim: int) -> Tensor:
        z = _divided(f, temperature, dim, out=scaled)
        q = torch.softmax(z, dim, out=work)
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
                rows = f.index_select(1 - dim, near).movedim(dim, 1)
                norm[near] = one_hot_norm(rows, p, temperature, torch.float64).float()
        return norm

    return _by_blocks(block_norm, logits, torch.float64 if p < 1 else dtype, dtype)


def _divided(f: Tensor, temperature: float, dim: int, out: Tensor) -> Tensor:
    """Return ``f/T`` up to a constant a row, in ``out`` unless it is ``f`` itself."""
    if temperature == 1:
        return f
    # Centred first: f/T alone would round at the size of a common offset of the logits.
    return torch.sub(f, f.amax(dim=dim, keepdim=True), out=out).div_(temperature)


def _by_blocks(
    block_norm: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    logits: Tensor,
    dtype: torch.dtype,
    result_type: torch.dtype,
) -> Tensor:
    """Fill the result with ``block_norm(f, scaled, work, dim)`` over blocks of rows.

    ``f`` are the block's logits in ``dtype``, with the classes on axis ``dim``:
    ``[rows, classes]`` or, narrow, the other way round. ``scaled`` and ``work`` are shaped alike,
    free to be overwritten.
    """
    rows, classes = logits.shape
    step = min(block_rows(classes, dtype, logits.device), max(1, rows))
    blocks = logits.new_empty(3, step * classes, dtype=dtype)
    result = logits.new_empty(rows, dtype=result_type)
    for start in range(0, rows, step):
        f = logits[start : start + step]
        shape, dim = ((classes, len(f)), 0) if classes <= NARROW else (tuple(f.shape), 1)
        taken, scaled, work = (block[: f.numel()].view(shape) for block in blocks)
        if dim == 0 and f.dtype == dtype and f.t().is_contiguous():
            f = f.t()
        elif dim == 0:
            f = torch.stack(f.to(dtype).unbind(1), out=taken)
        elif f.dtype != dtype:
            f = taken.copy_(f)
        result[start : start + step] = block_norm(f, scaled, work, dim)
    return result
