"""The largest products of many vectors with a bank: in single precision who may be among them.

Products in double precision, and choosing among all of them, take five times as long. So a bound
comes first: of disjoint groups of the bank, the k-th largest of the groups' maxima is no larger
than the k-th largest product. What lies below it by more than single precision can be wrong is
left out; the few others are multiplied again in double precision. The result is exact.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GROUP = 16
"""Rows of the bank of which only the largest product is looked at first."""
FEWEST_ROWS, FEWEST_GROUPS = 32, 4
"""Vectors, and groups for each product that is wanted, from which on the bound pays."""
ENTRIES = 1 << 21
"""Products held at once, or those of :data:`SHARED` vectors."""
SHARED = 256
"""Vectors for which a large bank is read once."""
MOST_CANDIDATES = 64
"""Products a wanted one that may lie above the bound; of more, such as equal ones, none is left
out."""
HALF_DIGIT = 2.0**-24
"""How far a number in single precision may be from what it stands for, as a share of it."""


def pays(vectors: Tensor, bank: Tensor, k: int) -> bool:
    """Return whether :func:`largest_products` serves these, and faster than all products do."""
    return (
        len(vectors) >= FEWEST_ROWS
        and len(bank) >= GROUP * FEWEST_GROUPS * k
        and bank.dtype is torch.float32
        and vectors.device.type == bank.device.type == "cpu"
        and not vectors.requires_grad
    )


def largest_products(vectors: Tensor, bank: Tensor, k: int) -> Tensor:
    """Return the k largest products of each vector with the rows of a bank, largest first.

    Args:
        vectors: Of length 1 at most, shape ``[rows, columns]``, float64.
        bank: Shape ``[kept, columns]``, float32.
        k: How many; there are several times as many rows in the bank.

    Returns:
        Shape ``[rows, k]``, float64.
    """
    rows, held = vectors.numpy(), bank.numpy()
    longest = float(np.sqrt(np.einsum("ij,ij->i", held, held, dtype=np.float64).max()))
    # Of a sum of products in any order (Higham, Accuracy and Stability, 2002, section 3.1); two
    # more for the rounding of the vectors and a length that is not quite 1. Both sides may be off.
    slack = 2 * 1.01 * (held.shape[1] + 2) * HALF_DIGIT * longest
    result = np.empty((len(rows), k))
    step = max(SHARED, ENTRIES // len(held))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        result[start : start + step] = _largest(part, held, k, slack)
    return torch.from_numpy(result)


def _largest(rows: NDArray, bank: NDArray, k: int, slack: float) -> NDArray[np.float64]:
    groups = -(-len(bank) // GROUP)
    rough = np.empty((len(rows), GROUP * groups), np.float32)
    rough[:, len(bank) :] = -np.inf
    np.matmul(rows.astype(np.float32), bank.T, out=rough[:, : len(bank)])
    grouped = rough.reshape(len(rows), GROUP, groups)
    largest = grouped.max(axis=1)
    bound = np.partition(largest, groups - k, axis=1)[:, groups - k].astype(np.float64) - slack
    # Rounded downwards: a bound that is rounded up could leave one out.
    below = np.nextafter(bound.astype(np.float32), np.float32(-np.inf))
    # Few groups reach it: only these are looked into.
    row, group = np.nonzero(largest >= below[:, None])
    pair, place = np.nonzero(grouped[row, :, group] >= below[row][:, None])
    row, column = row[pair], place * groups + group[pair]
    if len(row) > MOST_CANDIDATES * k * len(rows):
        products = rows @ bank.T.astype(np.float64)
        return -np.sort(np.partition(-products, k - 1, axis=1)[:, :k], axis=1)
    products = np.empty(len(row))
    step = max(1, ENTRIES // bank.shape[1])
    for start in range(0, len(row), step):
        part = slice(start, start + step)
        products[part] = np.einsum("ij,ij->i", rows[row[part]], bank[column[part]], dtype="d")
    order = np.lexsort((-products, row))
    first = np.searchsorted(row, np.arange(len(rows)))
    return products[order[first[:, None] + np.arange(k)]]
