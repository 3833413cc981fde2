"""What methods learn from sets of a run: learned once, stored in the run, read ever after."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.errors import InvalidArgument, RunError
from gradscore.methods.base import RecordedRun
from gradscore.run import describe_fit

COMPARED = 20_000
"""Images of a set that are compared with those of another, at most."""
SAME = 1e-5
"""How far the logits of one image may be apart, as a part of the largest of all."""
Arrays = dict[str, NDArray]
Source = Callable[[], Iterator[Arrays]]
"""Gives a set's rows in blocks, the recorded arrays by name; it may be called again."""


def labelled_set(fit: str) -> tuple[str]:
    """Return the ID set of a ``fit`` option, also where a set of noise follows for others."""
    return (fit.split(",")[0],)


def require_sets(run: RecordedRun, names: Sequence[str]) -> None:
    """Raise unless the run holds every set to fit to.

    Raises:
        InvalidArgument: If one is unknown; the message lists those of the run.
    """
    for name in names:
        if name not in run.sets:
            raise InvalidArgument(
                f"Unknown set {name!r} to fit to; the run holds: {', '.join(run.sets)}."
            )


def fitted(
    run: RecordedRun,
    method: str,
    sets: Sequence[str],
    learn: Callable[..., Mapping[str, ArrayLike]],
    *,
    settings: Mapping[str, Any],
    fields: Sequence[str] = ("index",),
    passes: Sequence[str] = (),
) -> Arrays:
    """Return what a method learned, from the run if it is there, else learned now and stored.

    Args:
        run: The run's store, open for reading.
        method: Who learns.
        sets: The sets that it learns from.
        learn: From a source of the rows of each set to named arrays.
        settings: Everything else that the result depends on.
        fields: What it reads of the base pass.
        passes: Names of the passes that it reads beside it.

    Raises:
        RunError: If the stored file is missing or damaged.
    """
    entry = describe_fit(run.info, method, sets, settings)
    arrays = run.read_fit(entry.name)
    if arrays is None:
        read = partial(run.fit_blocks, fields=fields, norms=passes)
        learned = learn(*(partial(read, name) for name in sets))
        arrays = {name: np.atleast_1d(np.asarray(array)) for name, array in learned.items()}
        # A run that is read-only, or being written by another process, can be scored all the same.
        with suppress(RunError):
            run.keep_fit(entry, arrays)
    return arrays


def repeated_images(run: RecordedRun, fit: str, test: str) -> int:
    """Return how many images of a set are in the set to fit to, too: their logits are the same.

    Of very large sets the first :data:`COMPARED` images are compared.

    Args:
        run: The run.
        fit: Name of the set to fit to.
        test: Name of the other.
    """
    known, tested = (_first_logits(run, name) for name in (fit, test))
    # One number an image finds its candidates; their logits then decide.
    weights = np.cos(np.arange(known.shape[1]) + 1)
    keys = np.sort(known @ weights)
    order = np.argsort(known @ weights, kind="stable")
    scale = SAME * np.abs(known).max(initial=0)
    reach = scale * np.abs(weights).sum()
    ends = (np.searchsorted(keys, tested @ weights + side * reach) for side in (-1, 1))
    return sum(
        bool((np.abs(known[order[low:high]] - row) <= scale).all(axis=1).any())
        for row, low, high in zip(tested, *ends, strict=True)
    )


def _first_logits(run: RecordedRun, name: str) -> NDArray[np.float64]:
    parts, count = [], 0
    with closing(run.blocks(name, ("logits",))) as blocks:
        for block in blocks:
            parts.append(block["logits"].astype(np.float64))
            count += len(parts[-1])
            if count >= COMPARED:
                break
    return np.concatenate(parts)[:COMPARED]
