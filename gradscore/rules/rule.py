"""What a rule is: per-sample gradients of one call, whole or in tiles, and the norms of tiles.

A rule that multiplies matrices yields tiles that stay in cache. Reducing each before the next one
is made keeps any tensor of ``[batch, parameters]`` from existing, and the tile's second reading
out of main memory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradscore.norms import vector_norm

TILE_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}
"""Elements of one tile: for each thread of a CPU about its cache; on a GPU, to fill it."""

LEAST_BAND = 256
"""Output channels below which a product of matrices no longer runs at full speed."""


class Tile(NamedTuple):
    """Gradients of some samples for some output channels.

    Attributes:
        samples: Which samples.
        channels: Which output channels, all of whose gradient entries are in the tile.
        gradient: Shape ``[samples, rows, channels, columns]``, where ``rows * columns`` are the
            entries of one output channel, in an order that is the form's own. The memory is
            used again for the next tile, and whoever reads it may overwrite it.
    """

    samples: slice
    channels: slice
    gradient: Tensor


@dataclass(frozen=True)
class Call:
    """One recorded call of a function, as a rule sees it.

    Attributes:
        function: The function that was called, such as ``torch.nn.functional.linear``.
        arguments: Its arguments by name, those left out missing. Tensors that hold data are
            detached and batch-first, ``[samples * k, ...]``, the ``k`` rows of a sample side by
            side (``k > 1`` where a network folds windows or patches into the batch); parameters
            and constants are as they were passed.
        samples: Number of samples, at least one. A call without rows, as that of a part of a
            network that no sample is sent to, meets no rule: its gradient is zero.
        memo: What the rules of several arguments share, such as the scale's and the shift's
            gradient, which one reading of input and output gradient gives.
    """

    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    samples: int
    memo: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the argument ``name``, or ``default`` where the call left it out."""
        return self.arguments.get(name, default)


GradientForm = Callable[[Call, str, Tensor], Tensor]
NormForm = Callable[[Call, str, Tensor, Sequence[float]], Tensor | None]
TileForm = Callable[[Call, str, Tensor], Iterator[Tile]]


@dataclass(frozen=True)
class Rule:
    """How per-sample gradients with respect to one argument of a function are had.

    Attributes:
        name: What reports call the rule.
        gradient: ``(call, argument, grad) -> [samples, *argument.shape]``, where ``grad`` is the
            gradient of the summed loss with respect to the call's output, laid out as its data.
            It is called for a few samples at a time.
        norms: ``(call, argument, grad, orders) -> [samples, len(orders)]`` without ever holding
            more of the gradients than about what the call's data take, or ``None`` where it has
            no cheap form for this call; then ``gradient`` is called in chunks and reduced.
        reads_data: Whether the values of the call's data are needed, not only their shapes; where
            they are not, the data are handed over without memory behind them (on ``meta``).
        trailing: Whether the parameter meets the trailing axes only, so that the batch may come
            from any other axis, as in sequence-first networks.
        serves: From a call's arguments by name to whether the rule holds for them, or ``None``
            where it holds for all. Calls with complex tensors are left to the generic rule.
        tiles: ``(call, argument, grad)`` to the gradients in tiles that each hold whole output
            channels, for what is derived from a parameter channel by channel, or ``None``.
    """

    name: str
    gradient: GradientForm
    norms: NormForm | None = None
    reads_data: bool = True
    trailing: bool = False
    serves: Callable[[Mapping[str, Any]], bool] | None = None
    tiles: TileForm | None = None


class Tiling(NamedTuple):
    """How many samples and output channels a tile holds.

    A batched product gives each thread whole samples, so that their number is a multiple of the
    threads: with three samples on two threads, one of them would wait for a third of the time.

    Attributes:
        samples: At most so many samples.
        channels: At most so many output channels of each.
    """

    samples: int
    channels: int

    @classmethod
    def of(cls, x: Tensor, samples: int, channels: int, columns: int) -> "Tiling":
        """Return how gradients ``[samples, channels, columns]`` are cut where ``x`` is."""
        threads = torch.get_num_threads() if x.is_cpu else 1
        budget = tile_elements(x)
        each = max(1, budget // max(1, channels * columns))
        at_once = min(samples, threads * _even(-(-samples // threads), each))
        band = max(LEAST_BAND, budget // max(1, columns))
        return cls(at_once, _even(channels, band))


def _even(total: int, most: int) -> int:
    """Return the size of as few parts of a total as ``most`` allows, all of about one size."""
    return -(-total // -(-total // most))


def spans(total: int, step: int) -> Iterator[slice]:
    """Yield consecutive slices of at most ``step`` that make up ``total``."""
    return (slice(start, min(start + step, total)) for start in range(0, total, step))


def tile_elements(x: Tensor) -> int:
    """Return how many elements a tile should have, for each thread, on the device of ``x``."""
    return TILE_ELEMENTS.get(x.device.type, TILE_ELEMENTS["cpu"])


def matrix_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write ``left @ right`` of each sample to ``out``; that of one is shared by the threads."""
    if len(out) == 1:
        torch.mm(left[0], right[0], out=out[0])
    else:
        torch.bmm(left, right, out=out)


def product_tiles(left: Tensor, right: Tensor) -> Iterator[Tile]:
    """Yield ``left @ right`` of each sample in tiles.

    Args:
        left: Shape ``[n, channels, positions]``.
        right: Shape ``[n, positions, columns]``.

    Yields:
        Tiles with one row of ``columns`` entries for every channel.
    """
    n, channels, columns = len(left), left.shape[1], right.shape[2]
    tiling = Tiling.of(left, n, channels, columns)
    memory = left.new_empty(tiling.samples * tiling.channels * columns)
    for samples in spans(n, tiling.samples):
        for rows in spans(channels, tiling.channels):
            count, size = samples.stop - samples.start, rows.stop - rows.start
            tile = memory[: count * size * columns].view(count, size, columns)
            matrix_product(left[samples, rows], right[samples], tile)
            yield Tile(samples, rows, tile.unsqueeze(1))


def abs_norms(gradient: Tensor, orders: Sequence[float]) -> Tensor:
    """Return norms of each sample's gradient, overwriting the gradient.

    On a CPU, torch's own reduction for p = 1 runs at a sixth of the speed of ``abs`` in place and
    ``sum``. Elsewhere it is one kernel, which writes nothing back.

    Args:
        gradient: Shape ``[samples, ...]``.
        orders: Orders of the norm.

    Returns:
        Norms, shape ``[samples, len(orders)]``, in at least float32.
    """
    dims = tuple(range(1, gradient.ndim))
    if gradient.dtype in (torch.float16, torch.bfloat16):
        gradient = gradient.float()
    one_kernel = not gradient.is_cpu and not gradient.is_complex()
    if 1 not in orders or one_kernel:
        norms = [vector_norm(gradient, p, dims) for p in orders]
    else:
        gradient = gradient.abs() if gradient.is_complex() else gradient.abs_()
        norms = [gradient.sum(dims) if p == 1 else vector_norm(gradient, p, dims) for p in orders]
    return norms[0].unsqueeze(1) if len(norms) == 1 else torch.stack(norms, dim=1)


def reduce_tiles(
    tiles: Iterable[Tile],
    orders: Sequence[float],
    pull_back: Callable[[Tile], Tensor] | None = None,
) -> Tensor:
    """Return the norms of per-sample gradients that come in tiles.

    Args:
        tiles: The tiles, at least one, which together hold every entry once.
        orders: Orders of the norm.
        pull_back: What to make of a tile's gradient before it is reduced, shaped as it.

    Returns:
        Norms, shape ``[samples, len(orders)]``.
    """
    parts: dict[int, list[Tensor]] = {}
    for tile in tiles:
        gradient = pull_back(tile) if pull_back else tile.gradient
        parts.setdefault(tile.samples.start, []).append(abs_norms(gradient, orders))
    wholes = [parts[start] for start in sorted(parts)]
    if all(len(whole) == 1 for whole in wholes):
        return wholes[0][0] if len(wholes) == 1 else torch.cat([whole[0] for whole in wholes])
    return torch.cat([combine_parts(torch.stack(whole), orders) for whole in wholes])


def combine_parts(parts: Tensor, orders: Sequence[float]) -> Tensor:
    """Combine ``[parts, samples, len(orders)]`` by the p-norm of the parts' p-norms."""
    return torch.stack(
        [vector_norm(parts[:, :, column], p, dim=0) for column, p in enumerate(orders)], dim=1
    )


def sum_by_channel(grad: Tensor, samples: int) -> Tensor:
    """Sum ``[samples * k, channels, ...]`` over positions to ``[samples, channels]``."""
    rows, channels = grad.shape[:2]
    by_row = grad.reshape(rows, channels, grad.shape[2:].numel()).sum(dim=2)
    return by_row.reshape(samples, rows // samples, channels).sum(dim=1)
