"""Norms of products over positions: by whom, and where nobody is quicker, by their tiles.

A line of ``FORMS`` is all that puts a form to use; without it, tiles serve what it served.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from gradscore.rules import cuda_gram, cuda_products, gram
from gradscore.rules.products import Product, Sizes

Serves = Callable[[Sizes, Sequence[float], Tensor], bool]
Norms = Callable[[Product, Sequence[float]], Tensor]

FORMS: tuple[tuple[Serves, Norms], ...] = (
    (gram.serves, gram.gram_norms),  # order 2 on a CPU, where positions are few
    (cuda_gram.serves, cuda_gram.gram_norms),  # the same on CUDA
    (cuda_products.serves, cuda_products.product_norms),  # orders 1, 2 and infinity on CUDA
)
"""From sizes, orders and a factor to whether a form serves; and from a product to its norms."""


def find_norms(sizes: Sizes, orders: Sequence[float], left: Tensor, right: Tensor) -> Norms | None:
    """Return the first form that serves both factors, or ``None`` where tiles do best.

    Args:
        sizes: Sizes of the product.
        orders: Orders of the norm.
        left: What the left factor is a view of.
        right: What the right factor is a view of.
    """
    if left.dtype == right.dtype and left.device == right.device:
        for serves, norms in FORMS:
            if serves(sizes, orders, right):
                return norms
    return None
