"""The compiled functions that :mod:`gradscore.closed_form.cpu` calls: each row is read once.

Whatever is asked of a row is answered while it is in cache. Memory does not grow with the rows.
"""

import hashlib
import math
from pathlib import Path

import numpy as np
from numba import njit
from numba.core.dispatcher import Dispatcher

from gradscore.closed_form import elementary, float32_rows, row_norms, side_by_side, vectors
from gradscore.closed_form.elementary import F, borrowed, fits_float32
from gradscore.closed_form.float32_rows import FACTS, WIDE, deviation_norms32
from gradscore.closed_form.row_norms import below_zero, copy_rows, magnitude, norm_of, settle
from gradscore.closed_form.side_by_side import (
    LANES,
    NARROW,
    SPACE,
    in_sixteens,
    norms_side_by_side,
    prepare,
)

BLOCK, BLOCK_ENTRIES = 8, 4096
"""Rows of many classes that take each step together, and their entries: a quarter of an inner
cache, which holds their exponentials too."""

called = njit(error_model="numpy", nogil=True)
COMPILED = (vectors, elementary, row_norms, float32_rows, side_by_side)
SOURCES = hashlib.sha256(
    b"".join(Path(module.__file__).read_bytes() for module in COMPILED)
).hexdigest()


def _functions(single: bool, sources: str) -> tuple[Dispatcher, Dispatcher]:
    """Return ``feature_norms`` and ``deviation_norms``, not yet compiled.

    Args:
        single: Whether rows are float32; what serves these alone is else not compiled.
        sources: Stands for all that they call: of what a function closes over, the cache on disk
            knows the values; of other files it knows nothing.
    """

    @called
    def feature_norms(x, orders, out):
        """Fill ``out [orders, batch]`` with the norms of the rows of ``x``, float32 or float64."""
        sources  # noqa: B018
        kept = np.empty(x.shape[1])
        x, orders, out, logs = borrowed(x), borrowed(orders), borrowed(out), borrowed(kept)
        for i in range(len(x)):
            known = False
            for s in range(len(orders)):
                if orders[s] == 1:
                    out[s, i] = magnitude(x[i])
                else:
                    out[s, i] = norm_of(x[i], orders[s], logs, known)
                    known = known or orders[s] not in (1.0, 2.0, math.inf)
        kept[0] = 0  # it was needed until here

    @called
    def deviation_norms(f, temperatures, one_hot, begins, orders, out):
        """Fill ``out [settings, batch]`` with V of the rows of ``f``.

        Args:
            f: Logits, ``[batch, classes]``, float32 or float64.
            temperatures: One for each group of settings that share their deviations.
            one_hot: Whether the target of a group is one-hot.
            begins: Where the orders of a group begin, and the number of all.
            orders: Of the norms, group by group.
            out: What is filled, float64.
        """
        sources  # noqa: B018
        n = f.shape[1]
        narrow = single and n <= NARROW
        step = LANES if narrow else max(1, min(BLOCK, BLOCK_ENTRIES // n))
        kept64 = np.empty((2, n))
        kept_norms = np.empty((len(orders), LANES))
        kept_facts = np.empty((FACTS, step))
        shape = (2 * in_sixteens(n) + SPACE, LANES) if narrow else (step, -(-n // WIDE) * WIDE)
        kept32 = np.zeros(shape, F)
        f, out, orders = borrowed(f), borrowed(out), borrowed(orders)
        e, logs, work = borrowed(kept64)[0], borrowed(kept64)[1], borrowed(kept32)
        side_by_side, facts = borrowed(kept_norms), borrowed(kept_facts)
        for first in range(0, len(f), step):
            rows, found = f[first : first + step], out[:, first : first + step]
            following = f[first + step : first + 2 * step]
            following = following if len(following) == len(rows) else rows
            if single and narrow:
                prepare(f, first, work)
            for g in range(len(temperatures)):
                a, b, t, hot = begins[g], begins[g + 1], temperatures[g], one_hot[g]
                asked, norms = orders[a:b], found[a:b]
                norms[:] = -1.0
                if single and fits_float32(t):
                    if narrow:
                        beside = side_by_side[a:b]
                        norms_side_by_side(work, f, (first + step) * n, t, hot, asked, beside)
                        copy_rows(beside, norms)
                    else:
                        deviation_norms32(rows, following, t, hot, asked, norms, work, facts)
                missing = 0
                for s in range(len(asked)):
                    missing += below_zero(norms[s])
                for k in range(len(rows) if missing else 0):
                    if below_zero(norms[:, k]):
                        settle(rows[k], t, hot, asked, e, logs, norms[:, k])
        # They were needed until here.
        kept64[0, 0], kept32[0, 0] = 0, 0
        kept_norms[0, 0], kept_facts[0, 0] = 0, 0

    return feature_norms, deviation_norms


def make_kernels(dtype: type, *, cached: bool) -> tuple[Dispatcher, Dispatcher]:
    """Return ``feature_norms`` and ``deviation_norms``, compiled at their first call.

    Args:
        dtype: Type of the rows, float32 or float64 of NumPy.
        cached: Whether what is compiled is kept on disk, and taken from there.

    Raises:
        RuntimeError: If it shall be, and no folder can be written.
    """
    kernels = _functions(dtype is np.float32, SOURCES)
    if cached:
        for kernel in kernels:
            kernel.enable_caching()
    return kernels
