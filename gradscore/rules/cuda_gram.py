"""Frobenius norms by Gram matrices on CUDA: one kernel for them, one for samples they lose.

Whether a sample keeps its digits is never asked of the device, which would have to be waited for.
The second kernel gets the answer with the samples, and passes over those that do.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradscore.kernels import current
from gradscore.rules import cuda_products
from gradscore.rules.gram import keep_digits
from gradscore.rules.products import Product, Sizes

LEAST_SAVING = 2.0
"""From here on the Gram matrices are taken; not measured, for want of a device."""

MOST_CANCELLATION = 100.0
"""Bound over sum up to which the sum is taken: a quarter of a CPU's, since a product of float32
made of three of TF32 rounds two bits earlier."""

LEAST_BOUND = 1e-20
"""Least bound, by itself and over the largest squares: below it entries are lost to underflow."""

TILE = {"POSITIONS": 64, "ENTRIES": 32}


def serves(sizes: Sizes, orders: Sequence[float], x: Tensor) -> bool:
    """Return whether the Gram matrices serve: on CUDA, for order 2 alone, where they cost less."""
    if not x.is_cuda or any(p != 2 for p in orders) or sizes.saving < LEAST_SAVING:
        return False
    return cuda_products.serves(sizes, orders, x)


def gram_norms(product: Product, orders: Sequence[float]) -> Tensor:
    """Return Frobenius norms, shape ``[samples, len(orders)]``; every order must be 2."""
    from gradscore.rules.triton_gram import gram_kernel

    programs, arguments, known = launch_of(product)
    parts = arguments[2]
    with current(parts.device):
        gram_kernel[(programs,)](*arguments, **known)
    total, bound = parts[..., 0].double().sum(0), parts[..., 1].double().sum(0).square()
    largest = parts[..., 2:].amax(0).sum(1)
    sound = keep_digits(total, bound, largest, MOST_CANCELLATION, LEAST_BOUND)
    sound &= bound > LEAST_BOUND
    rest = cuda_products.product_norms(product, (2.0,), done=sound)
    norms = torch.where(sound, total.sqrt().float(), rest[:, 0])
    return norms.unsqueeze(1).expand(-1, len(orders))


def launch_of(product: Product) -> tuple[int, tuple, dict[str, int]]:
    """Return how many programs the kernel takes, its arguments, and what is compiled into it.

    Returns:
        The third argument is a new tensor for the sums, ``[programs of a sample, samples, 4]``.
    """
    sizes = product.sizes
    blocks = math.ceil(sizes.positions / TILE["POSITIONS"])
    each = blocks * (blocks // 2 + 1)
    parts = product.left.new_empty(each, sizes.samples, 4, dtype=torch.float32)
    arguments = cuda_products.arguments_of(product, parts)
    return each * sizes.samples, arguments, {**TILE, "num_warps": 4}
