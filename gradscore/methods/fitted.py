"""What methods learn from sets of a run: learned once, stored in the run, read ever after."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.errors import InvalidArgument, RunError
from gradscore.escapes import counted
from gradscore.methods.base import RecordedRun, ScoreSpec
from gradscore.methods.rows import FOLDS, TESTED, fold_of
from gradscore.run import describe_fit

COMPARED = 20_000
"""Images of a set that are compared with those of another, at most."""
SAME = 1e-5
"""How far the outputs of one image may be apart, as a part of the largest of all."""
PROJECTIONS = 4
CANDIDATES = 1000
"""Known images that one is compared with, at most: more are alike only where all are."""
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
        learned = learn(*(partial(finite_blocks, run, name, fields, passes) for name in sets))
        arrays = {name: np.atleast_1d(np.asarray(array)) for name, array in learned.items()}
        # A run that is read-only, or being written by another process, can be scored all the same.
        with suppress(RunError):
            run.keep_fit(entry, arrays)
    return arrays


def finite_blocks(
    run: RecordedRun, name: str, fields: Sequence[str], passes: Sequence[str] = ()
) -> Iterator[Arrays]:
    """Yield the rows of a set to fit to, with their places in it.

    Args:
        run: The run.
        name: Name of the set.
        fields: Recorded arrays to read.
        passes: Passes to read.

    Raises:
        RunError: If a recorded value is not finite; the message names its row.
    """
    fields = tuple(dict.fromkeys(("index", *fields)))
    for block in run.fit_blocks(name, fields=fields, norms=passes):
        for what, values in block.items():
            if values.dtype.kind != "f":
                continue
            # A sum is not finite where any entry is not; a second pass where large ones overflow.
            with np.errstate(invalid="ignore"):
                total = values.sum(dtype=np.float64)
            if not np.isfinite(total):
                flat = values.reshape(len(values), -1)
                bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
                if len(bad):
                    value = flat[bad[0]][~np.isfinite(flat[bad[0]])][0]
                    row = block["index"][bad[0]]
                    raise RunError(
                        f"Expected finite {what} to learn from, got {value} in row {row} of set "
                        f"{name!r}."
                    )
        yield block


def repeat_notices(
    run: RecordedRun, specs: Iterable[ScoreSpec], tested: Iterable[str]
) -> Iterator[str]:
    """Yield a sentence for each tested set that shares images with those that scores learn from.

    Args:
        run: The run.
        specs: The scores.
        tested: Names of the sets that they are tested on.
    """
    plans = (spec.definition.plan(spec, run) for spec in specs)
    fits = sorted({name for plan in plans for name in plan.learned_from})
    for name in tested:
        for fit in fits:
            if fit == name and run.sets[name].role not in TESTED:
                continue  # it is not scored out of fold
            count = repeated_images(run, fit, name)
            images, verb = f"{counted(count, 'image')} of {name}", "is" if count == 1 else "are"
            if count and fit == name:
                yield f"{images} {verb} in both of its halves: scores learned from one know them."
            elif count:
                yield f"{images} {verb} in {fit}, too: methods that learned from it know them."


def repeated_images(run: RecordedRun, fit: str, test: str) -> int:
    """Return how many images of a set are in the set to fit to, too: their outputs are the same.

    Where both are the same set, how many are in both of the halves that learn for each other. Of
    very large sets the first :data:`COMPARED` images are compared.

    Args:
        run: The run.
        fit: Name of the set to fit to.
        test: Name of the other.
    """
    known, folds = _outputs(run, fit)
    if fit == test:
        halves = [known[folds == fold] for fold in range(FOLDS)]
        return sum(_count_known(halves[1 - fold], halves[fold]) for fold in range(FOLDS))
    return _count_known(known, _outputs(run, test)[0])


def _count_known(known: NDArray[np.float64], tested: NDArray[np.float64]) -> int:
    """Return how many rows are among known ones."""
    # One number an image finds its candidates; all its outputs then decide.
    weights = np.cos(np.arange(known.shape[1]) + 1)
    keys = np.sort(known @ weights)
    order = np.argsort(known @ weights, kind="stable")
    scale = SAME * np.abs(known).max(axis=0, initial=0)
    reach = (scale * np.abs(weights)).sum()
    ends = (np.searchsorted(keys, tested @ weights + side * reach) for side in (-1, 1))
    return sum(
        bool((np.abs(known[order[low : min(high, low + CANDIDATES)]] - row) <= scale).all(1).any())
        for row, low, high in zip(tested, *ends, strict=True)
    )


def _outputs(run: RecordedRun, name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return logits of a set's first images with a few projections of their features, and folds.

    The logits of two classes alone would often be the same by chance.
    """
    fields = ("index", "logits", *(("features",) if run.info.features else ()))
    parts, folds, count = [], [], 0
    with closing(run.blocks(name, fields)) as blocks:
        for block in blocks:
            part = block["logits"].astype(np.float64)
            if "features" in block:
                part = np.concatenate([part, block["features"] @ _directions(run)], axis=1)
            parts.append(part)
            folds.append(fold_of(block["index"]).numpy())
            count += len(part)
            if count >= COMPARED:
                break
    return np.concatenate(parts)[:COMPARED], np.concatenate(folds)[:COMPARED]


def _directions(run: RecordedRun) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(run.info.features, PROJECTIONS))
