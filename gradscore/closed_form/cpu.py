"""The closed form on a CPU: whether numba can serve, and the calls of its compiled loops.

numba is imported where a norm is first asked for. It compiles once for each type of number, and
keeps the result on disk: in ``NUMBA_CACHE_DIR``, or beside this package, or in the user's cache.

Rows are shared out among the threads that torch uses, the calling one among them.
"""

import itertools
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pickle import PickleError

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from gradscore.closed_form.threads import in_threads
from gradscore.errors import GradScoreWarning, reason_of
from gradscore.objective import Objective

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

CHUNK_ENTRIES = (1 << 18, 1 << 20)
"""Fewest and most entries that a thread takes at once: a tenth of a millisecond of work, which is
what it costs to wake a thread, up to one."""


def serves(*tensors: Tensor) -> bool:
    """Return whether the compiled loops can take these inputs; it is told once if never.

    They take plain tensors on a CPU, outside of graphs and transforms.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and all(
            tensor.is_cpu
            and tensor.layout == torch.strided
            and tensor.dtype in DTYPES
            and type(tensor) in (Tensor, torch.nn.Parameter)
            and not is_functorch_wrapped_tensor(tensor)
            for tensor in tensors
        )
        and all(_kernels(_number(tensor.dtype)) is not None for tensor in tensors)
    )


def feature_norms(features: Tensor, orders: Sequence[float]) -> Tensor:
    """Return ``U = |x|_p`` for each order, shape ``[orders, batch]``, float64.

    Args:
        features: Shape ``[batch, in_features]``, floating point.
        orders: Orders of the norm, positive.
    """
    x, asked = _array(features), np.array(orders, np.float64)
    norms = np.empty((len(asked), len(x)))

    def fill(rows: slice) -> None:
        norms[:, rows] = _feature_norms(x[rows], asked)

    _share_out(fill, x)
    return torch.from_numpy(norms)


def deviation_norms(logits: Tensor, objectives: Sequence[Objective]) -> Tensor:
    """Return V for each setting, shape ``[objectives, batch]``, float64.

    Args:
        logits: Network outputs ``f``, shape ``[batch, classes]``, floating point.
        objectives: What is asked for; those of one temperature and target share their deviations.
    """
    f = _array(logits)
    order, asked = _grouped(objectives)
    norms = np.empty((len(order), len(f)))

    def fill(rows: slice) -> None:
        norms[order, rows] = _deviation_norms(f[rows], asked)

    _share_out(fill, f)
    return torch.from_numpy(norms)


def score(features: Tensor, logits: Tensor, objective: Objective) -> Tensor:
    """Return the scores of :func:`gradscore.closed_form.last_layer_score`, not checked.

    Args:
        features: Input ``x`` of the last layer, shape ``[batch, in_features]``.
        logits: Its output ``f``, shape ``[batch, classes]``.
        objective: What is asked for.
    """
    x, f = _array(features), _array(logits)
    orders, (_, asked) = np.array([objective.p]), _grouped([objective])
    sign = f.shape[1] if objective.target == "uniform" else -1
    double = torch.float64 in (features.dtype, logits.dtype)
    scores = np.empty(len(x), np.float64 if double else np.float32)

    turns = itertools.cycle((0, 1))
    norms = (
        lambda rows: _feature_norms(x[rows], orders),
        lambda rows: _deviation_norms(f[rows], asked),
    )

    def fill(rows: slice) -> None:
        # Features take memory's time, logits the processor's: of two threads, one is at each.
        first = next(turns)
        one, other = norms[first](rows)[0], norms[1 - first](rows)[0]
        with np.errstate(all="ignore"):  # what is not finite is refused by the caller
            one *= other
            np.divide(one, sign * objective.temperature, out=scores[rows], casting="same_kind")

    _share_out(fill, x, f)
    return torch.from_numpy(scores)


@cache
def _kernels(dtype: type) -> tuple[Callable[..., None], Callable[..., None]] | None:
    """Return the compiled loops for features and logits of a type, or None without numba."""
    try:
        from gradscore.closed_form.cpu_kernels import make_kernels

        try:
            return _warmed(make_kernels(dtype, cached=True), dtype)
        except (RuntimeError, OSError, EOFError, ValueError, PickleError) as error:
            kernels = _warmed(make_kernels(dtype, cached=False), dtype)
            _tell(
                "Expected a folder that keeps compiled functions for the next process, got: "
                f"{reason_of(error).rstrip('.')}. Set NUMBA_CACHE_DIR to one that can be written."
            )
            return kernels
    except Exception as error:  # numba is missing, or does not know this Python or processor
        _tell(
            f"Expected the package numba, which scores on a CPU, got: "
            f"{reason_of(error).rstrip('.')}. Scores are computed by torch, more slowly."
        )
        return None


def _warmed(kernels: tuple, dtype: type) -> tuple:
    """Compile the loops for a type of number, or load them from the disk."""
    none, number = np.empty((0, 1), dtype), np.empty(1)
    kernels[0](none, number, none.astype(float))
    places = np.zeros(1, np.int64)
    kernels[1](none, number[:0], number[:0] > 0, places, number[:0], none.astype(float))
    return kernels


@cache
def _tell(message: str) -> None:
    warnings.warn(message, GradScoreWarning, stacklevel=2)


def _number(dtype: torch.dtype) -> type:
    return np.float64 if dtype == torch.float64 else np.float32


def _array(tensor: Tensor) -> NDArray:
    """Return a tensor's values where they are; bfloat16, which NumPy lacks, as its bits."""
    tensor = tensor.detach().resolve_neg()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _raised(rows: NDArray) -> NDArray:
    """Return rows in float32 or float64 and in order; most are so already."""
    if rows.dtype == np.int16:
        return (rows.astype(np.uint32, order="C") << 16).view(np.float32)
    return np.ascontiguousarray(rows, np.float64 if rows.dtype == np.float64 else np.float32)


Asked = tuple[NDArray, NDArray, NDArray, NDArray]


def _grouped(objectives: Sequence[Objective]) -> tuple[list[int], Asked]:
    """Return the places of objectives, group by group, and what a compiled loop is asked."""
    groups: dict[tuple[float, bool], list[int]] = {}
    for place, objective in enumerate(objectives):
        how = objective.temperature, objective.target == "one-hot"
        groups.setdefault(how, []).append(place)
    order = [place for places in groups.values() for place in places]
    begins = [0, *itertools.accumulate(len(places) for places in groups.values())]
    return order, (
        np.array([temperature for temperature, _ in groups], np.float64),
        np.array([one_hot for _, one_hot in groups], bool),
        np.array(begins, np.int64),
        np.array([objectives[place].p for place in order], np.float64),
    )


def _feature_norms(x: NDArray, orders: NDArray) -> NDArray:
    norms = np.empty((len(orders), len(x)))
    x = _raised(x)
    _kernels(x.dtype.type)[0](x, orders, norms)
    return norms


def _deviation_norms(f: NDArray, asked: Asked) -> NDArray:
    norms = np.empty((len(asked[-1]), len(f)))
    f = _raised(f)
    _kernels(f.dtype.type)[1](f, *asked, norms)
    return norms


def _share_out(work: Callable[[slice], None], *matrices: NDArray) -> None:
    """Call ``work`` with all rows, some at a time, on several threads where that pays."""
    rows, columns = len(matrices[0]), sum(matrix.shape[1] for matrix in matrices)
    threads = torch.get_num_threads()
    fewest, most = CHUNK_ENTRIES
    entries = min(most, max(fewest, rows * columns // (4 * threads)))
    step = max(1, entries // columns)
    starts = iter(range(0, rows, step))

    def take_turns() -> None:
        for start in starts:
            work(slice(start, min(start + step, rows)))

    in_threads(take_turns, min(threads, -(-rows // step)))
