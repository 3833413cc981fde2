"""Score recorded sets by many specs from one read of the run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradscore.closed_form.cuda import use_triton
from gradscore.columns import columns_for
from gradscore.errors import InvalidArgument, RunError, near_name
from gradscore.methods import Plan, RecordedRun, ScoreSpec, column_names
from gradscore.methods.block import Block

LIGHT = 3
"""Most norms of the closed form, beside no other work, that take less time than reading."""
LIGHT_BYTES = 1 << 23
"""Features and logits that are then read at once, where that is more than a plan asks for."""


@dataclass(frozen=True)
class Scores:
    """Scores of some rows of one set.

    Attributes:
        set: Name of the set.
        index: Places in the set's manifest, shape ``[rows]``.
        path: Where each input came from, shape ``[rows]``, text; empty where it was not asked.
        label: Class numbers, -1 where unknown, shape ``[rows]``.
        predicted: First largest logit, shape ``[rows]``.
        columns: Column name to scores, each ``[rows]``, float64; higher means more ID.
    """

    set: str
    index: NDArray
    path: NDArray
    label: NDArray
    predicted: NDArray
    columns: Mapping[str, NDArray[np.float64]]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.index)


def iterate_scores(
    run: RecordedRun,
    sets: Iterable[str],
    specs: Sequence[ScoreSpec],
    backend: str = "auto",
    *,
    paths: bool = True,
) -> Iterator[Scores]:
    """Yield the scores of blocks of rows, set by set, in the order of the manifests.

    Memory does not grow with the sets. Everything that the specs need is checked before the first
    row is read.

    Args:
        run: The run's store.
        sets: Names of the sets.
        specs: What to score by; equal ones are computed once.
        backend: ``triton`` takes the rows to a CUDA device for ``gradnorm`` of the last layer;
            the others do not: reading them takes longer than scoring them here. There, ``auto``
            is ``numba`` where that can be had, else ``torch``.
        paths: Whether the scores say where each input came from: of ten million, a gigabyte.

    Yields:
        Scores of consecutive rows.

    Raises:
        InvalidArgument: If there is no spec, a set or the backend is unknown, or triton
            cannot run here or has nothing to do.
        NotRecorded: If the run does not hold what a spec needs, or a set is unfinished.
        RunError: If a recorded value is not finite; the message names its row.
    """
    specs = list(dict.fromkeys(specs))
    if not specs:
        raise InvalidArgument("Expected at least one question, got none.")
    names = known_sets(run, sets)
    plans = [spec.definition.plan(spec, run) for spec in specs]
    device = _kernel_device(backend, plans)
    here = "auto" if backend == "triton" else backend
    states = [plan.fit() if plan.fit else None for plan in plans]
    columns = column_names(specs)
    fields = ("index", *(("path",) if paths else ()), "label", "logits") + (
        ("features",) if any("features" in plan.fields for plan in plans) else ()
    )
    passes = tuple(dict.fromkeys(name for plan in plans for name in plan.passes))
    light = _is_light(plans)
    rows = min(plan.rows for plan in plans)
    if light:
        rows = max(rows, LIGHT_BYTES // (4 * (run.info.features + run.info.classes)))
    orders = dict.fromkeys(order for plan in plans for order in plan.feature_orders)
    deviations = dict.fromkeys(objective for plan in plans for objective in plan.deviations)
    threads = max(1, torch.get_num_threads() - light)
    for name in names:
        run.require_complete(name, ("base", *passes))
    for name in names:
        for arrays in run.blocks(name, fields=fields, norms=passes, rows=rows):
            block = Block(arrays, orders, deviations, device, here)
            with _torch_threads(threads):
                _check_finite(block, name, fields, passes)
                scored = {
                    column: plan.score(state, block).numpy()
                    for column, plan, state in zip(columns, plans, states, strict=True)
                }
            for column, values in scored.items():
                _check_rows(values[:, None], column, name, arrays)
            yield Scores(
                name,
                arrays["index"],
                arrays["path"] if paths else np.empty(0, object),
                arrays["label"],
                arrays["logits"].argmax(axis=1),
                scored,
            )
            # Gone before the next block is read.
            del block, arrays


def score_sets(
    run: RecordedRun,
    sets: Iterable[str],
    specs: Sequence[ScoreSpec],
    backend: str = "auto",
    *,
    paths: bool = True,
) -> dict[str, Scores]:
    """Return every set's scores, all of them from one read.

    Columns that together take much memory are kept on the disk, and read when they are asked for.

    Args:
        run: The run's store.
        sets: Names of the sets.
        specs: What to score by; equal ones are computed once.
        backend: As of :func:`iterate_scores`.
        paths: As of :func:`iterate_scores`.

    Returns:
        Set name to its scores, rows in the order of its manifest.

    Raises:
        InvalidArgument: If there is no spec, or a set is unknown.
        NotRecorded: If the run does not hold what a spec needs, or a set is unfinished.
        RunError: If a recorded value is not finite; the message names its row.
    """
    filled: dict[str, Scores] = {}
    places: dict[str, int] = {}
    names = known_sets(run, sets)
    for scored in iterate_scores(run, names, specs, backend, paths=paths):
        start = places.setdefault(scored.set, 0)
        places[scored.set] = stop = start + len(scored)
        # Whole arrays from the start: small ones left among a block's temporaries would keep
        # the memory between them from being used again.
        if not start:
            filled[scored.set] = _empty(scored, run.sets[scored.set].recorded())
        whole = filled[scored.set]
        for field in ("index", *(("path",) if paths else ()), "label", "predicted"):
            getattr(whole, field)[start:stop] = getattr(scored, field)
        for column, values in scored.columns.items():
            whole.columns.put(column, start, values)
    for name in names:
        if name not in filled:
            raise RunError(f"Set {name!r} holds no rows.")
    return filled


def known_sets(run: RecordedRun, sets: Iterable[str]) -> list[str]:
    """Return ``sets`` without repetitions, or raise unless the run holds each.

    Raises:
        InvalidArgument: If one is unknown; the message lists those of the run.
    """
    names = list(dict.fromkeys(sets))
    for name in names:
        if name not in run.sets:
            raise InvalidArgument(
                f"Unknown set {name!r}; the run holds: {', '.join(run.sets) or 'none'}."
                f"{near_name(name, run.sets)}"
            )
    return names


def _empty(like: Scores, rows: int) -> Scores:
    """Return room for all rows of a set, of the types of one block."""
    known = (like.index, like.path, like.label, like.predicted)
    arrays = [np.empty(rows if len(one) else 0, one.dtype) for one in known]
    return Scores(like.set, *arrays, columns_for(list(like.columns), rows))


def _kernel_device(backend: str, plans: Sequence[Plan]) -> str | None:
    """Return where the Triton kernels shall score the last layer; None for here.

    Raises:
        InvalidArgument: If the backend is unknown, or triton cannot run or has nothing to do.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    asked = use_triton(backend, torch.empty(0, device=device)) and backend == "triton"
    # Of the closed form's scores only gradnorm itself takes features and logits together.
    if asked and not any(plan.feature_orders and plan.deviations for plan in plans):
        raise InvalidArgument(
            "Expected a question that backend 'triton' serves, gradnorm with layers last, "
            "got none; choose `backend='auto'`."
        )
    return device if asked else None


def _is_light(plans: Sequence[Plan]) -> bool:
    """Return whether reading takes longer than scoring.

    Reading must then have a core for itself: a thread of torch that shares it keeps all others
    waiting, and those wait by spinning. And what is read at once takes longer than handing it on.
    """
    norms = {norm for plan in plans for norm in (*plan.feature_orders, *plan.deviations)}
    return len(norms) <= LIGHT and all(p.feature_orders or p.deviations for p in plans)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_finite(block: Block, name: str, fields: Iterable[str], passes: Iterable[str]) -> None:
    recorded = [(field, getattr(block, field)) for field in fields if hasattr(Block, field)]
    recorded += [
        (name, block.recorded(name))
        for passed in passes
        for name in block.arrays
        if name == passed or name.startswith(f"{passed}/")
    ]
    for what, values in recorded:
        # A sum is not finite where any entry is not: one cheap pass, and a second where large
        # entries overflow it.
        rows = values.flatten(1)
        if not rows.sum(dim=1).isfinite().all():
            _check_rows(rows.numpy(), what, name, block.arrays)


def _check_rows(values: NDArray, what: str, name: str, arrays: Any) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        row = bad[0]
        where = f" ({arrays['path'][row]})" if "path" in arrays else ""
        raise RunError(
            f"Expected finite {what}, got {values[row][~np.isfinite(values[row])][0]} in row "
            f"{arrays['index'][row]} of set {name!r}{where}."
        )
