"""The closed form in plain torch: any device, any floating type, every digit.

All is computed in float64, where the two ways to write a deviation in :mod:`gradscore.objective`
are the only care that is needed. Nothing branches on values, so that ``torch.export`` and ONNX can
follow. Eager calls take some rows at a time, so that their temporaries stay in cache.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from gradscore.norms import vector_norm
from gradscore.objective import Objective, one_hot_deviation, uniform_deviation

BLOCK_ENTRIES = {"cpu": 1 << 17, "cuda": 1 << 25}
"""Entries worked on at once: what the outer cache, or a spare part of a device's memory, holds."""


def feature_norms(features: Tensor, orders: Sequence[float]) -> Tensor:
    """Return ``U = |x|_p`` of each row for each order.

    Args:
        features: Input ``x`` of the last layer, shape ``[batch, in_features]``.
        orders: Orders of the norm, positive.

    Returns:
        Norms in units of the features, shape ``[orders, batch]``, in float64 where
        the device has it.
    """

    def norms(rows: Tensor) -> Tensor:
        x = rows.to(_widest(rows))
        return torch.stack([vector_norm(x, p, dim=1) for p in orders])

    return _in_blocks(norms, features)


def deviation_norms(logits: Tensor, objectives: Sequence[Objective]) -> Tensor:
    """Return V, the norm of the softmax's deviation from its target, for each row and setting.

    Args:
        logits: Network outputs ``f``, shape ``[batch, classes]``.
        objectives: What is asked for; those of one temperature and target share their deviations.

    Returns:
        Norms without unit, shape ``[objectives, batch]``, in float64 where the device has it.
    """

    def norms(rows: Tensor) -> Tensor:
        f = rows.to(_widest(rows))
        deviations = {}
        for how in {(asked.temperature, asked.target) for asked in objectives}:
            deviation = uniform_deviation if how[1] == "uniform" else one_hot_deviation
            deviations[how] = deviation(f, how[0])
        top = f.amax(dim=1)
        unsound = top - top  # zero, but NaN where a row has no softmax
        return torch.stack(
            [
                vector_norm(deviations[asked.temperature, asked.target], asked.p, dim=1) + unsound
                for asked in objectives
            ]
        )

    return _in_blocks(norms, logits)


def row_blocks(rows: Tensor) -> Iterable[Tensor]:
    """Split a matrix into blocks of rows whose temporaries stay in the outer cache.

    In a graph it stays whole: a loop over blocks would freeze the batch.
    """
    if torch.compiler.is_compiling():
        return (rows,)
    entries = BLOCK_ENTRIES.get(rows.device.type, BLOCK_ENTRIES["cpu"])
    return rows.split(max(1, entries // max(1, rows.shape[1])))


def _in_blocks(norms: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return torch.cat([norms(block) for block in row_blocks(rows)], dim=1)


def _widest(tensor: Tensor) -> torch.dtype:
    """Return float64 where the device has it; Apple's has not."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
