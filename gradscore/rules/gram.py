"""Frobenius norms of products over positions from two Gram matrices, where positions are few.

For each sample ``|g^T x|^2 = sum((g g^T) * (x x^T))``, the Gram matrices of its positions. This
takes ``positions^2 (channels + columns)`` multiplications in place of ``positions channels
columns``, and writes no gradient (Li, Tramer, Liang & Hashimoto, "Large Language Models Can Be
Strong Differentially Private Learners", ICLR 2022, Section 4).

The sum has terms of both signs, and loses digits where positions work against each other. How many
is known by then: ``(sum over p of |g_p| |x_p|)^2``, from the diagonals, bounds what rounding adds
up to. A sample where that is much larger than the sum is multiplied out instead.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscore.rules.products import Product, Sizes
from gradscore.rules.rule import Tiling, reduce_tiles, spans

LEAST_SAVING = 1.25
"""From here on the Gram matrices of a CPU take less time than the product."""

LEAST_WORK = 2**20
"""Multiplications of all samples below which what comes on top of them decides."""

MOST_CANCELLATION = 400.0
"""Bound over sum up to which the sum is taken. Norms were off by at most 0.11 of it in units of
rounding, 3e-6 in float32. Positions that have nothing in common are at their number."""

LEAST_BOUND = {torch.float32: 1e-20, torch.float64: 1e-280}
"""Least bound, over the largest squares, that is not touched by products too small for a type."""


def serves(sizes: Sizes, orders: Sequence[float], x: Tensor) -> bool:
    """Return whether the Gram matrices cost less than the product: on a CPU, for order 2 alone."""
    if any(p != 2 for p in orders):
        return False
    worth = sizes.saving >= LEAST_SAVING and math.prod(sizes) >= LEAST_WORK
    return worth and x.is_cpu and x.dtype in LEAST_BOUND


def gram_norms(product: Product, orders: Sequence[float]) -> Tensor:
    """Return Frobenius norms, shape ``[samples, len(orders)]``; every order must be 2."""
    n, _, columns, positions = product.sizes
    step = Tiling.of(product.right, n, positions, max(positions, columns)).samples
    norms = torch.cat([_frobenius(product[part]) for part in spans(n, step)])
    return norms.unsqueeze(1).expand(n, len(orders))


def _frobenius(product: Product) -> Tensor:
    """Return the norms of some samples, shape ``[samples]``."""
    of_left, of_right = (torch.bmm(x.mT, x).double() for x in product.matrices())
    squares = [gram.diagonal(dim1=1, dim2=2) for gram in (of_left, of_right)]
    total = (of_left * of_right).sum((1, 2))
    bound = (squares[0] * squares[1]).sqrt().sum(1).square()
    largest = squares[0].amax(1) + squares[1].amax(1)
    dtype = product.left.dtype
    sound = keep_digits(total, bound, largest, MOST_CANCELLATION, LEAST_BOUND[dtype])
    norms = total.sqrt().to(dtype)
    if not sound.all():
        rest = Product(product.left[~sound], product.right[~sound])
        norms[~sound] = reduce_tiles(rest.tiles(), (2.0,))[:, 0]
    return norms


def keep_digits(
    total: Tensor, bound: Tensor, largest: Tensor, cancellation: float, least: float
) -> Tensor:
    """Return for which samples the sum over both Gram matrices has kept its digits.

    Args:
        total: The sums, shape ``[samples]``.
        bound: What the sums would be if nothing cancelled, at most.
        largest: The largest entries of both matrices, added.
        cancellation: How many times the sum the bound may be.
        least: How many times the largest entries the bound must be.
    """
    in_range = (bound > least * largest) & (total < math.inf)
    return in_range & (bound <= cancellation * total)
