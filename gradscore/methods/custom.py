"""Scores of a user's own, by name: in every table, plot and choice."""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradscore.errors import GradScoreError, InvalidArgument, RunError
from gradscore.methods import METHODS
from gradscore.methods.base import Method, Plan, RecordedRun, ScoreSpec
from gradscore.methods.block import Block
from gradscore.methods.fingerprint import fingerprint
from gradscore.methods.fit_sets import FitSets, find_fit_sets
from gradscore.methods.fitted import finite_blocks
from gradscore.methods.gradnorm import require_closed_form
from gradscore.methods.learner import FIELDS, last_layer, read_rows, score_by_fold
from gradscore.methods.own_fits import pack, unpack
from gradscore.methods.rows import LastLayer, Rows, check_fit_size
from gradscore.run import describe_fit

Score = Callable[..., Tensor]
"""``(features, logits, head)``, and what was learned where the method learns, to scores."""
Learn = Callable[[Tensor, Tensor, LastLayer], Any]
OWN = "python:"
"""How the name of a function of the user's own begins."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_COLUMNS = ("set", "index", "path", "label", "predicted", "label_name", "predicted_name")
"""No names for methods: the other columns of a table of scores."""


def register_method(name: str, score: Score, fit: Learn | None = None) -> None:
    """Give a score of your own a name, by which every table, plot and choice knows it.

    >>> import gradscore as gs
    >>> gs.register_method("margin", lambda features, logits, head: (
    ...     logits.topk(2).values @ logits.new_tensor([1.0, -1.0])))

    Args:
        name: Letters a-z, digits and ``_``; none of :data:`gradscore.methods.METHODS`, and no
            other column of a table of scores, such as ``label``.
        score: From features ``[rows, in_features]`` and logits ``[rows, classes]``, float32, and
            the last layer (``head.weight``, ``head.bias``, ``head(features)``) to scores
            ``[rows]``; higher means more ID. With ``fit`` it takes what that returned, too.
        fit: From features, logits and last layer of all ID rows to fit to, to anything. It never
            sees rows that it is then tested on. Arrays, and tuples, lists and dicts of them, are
            kept in the run, as long as the function and all that it refers to are the same;
            anything else is learned again in each process.

    Raises:
        InvalidArgument: If the name is no name, or taken.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"Expected a method's name of a-z, 0-9 and _, got {name!r}.")
    _register(name, score, fit)


def import_method(name: str) -> None:
    """Import a score that a user names as ``python:module:function``.

    Only what a user types is passed here: what a run names is not imported on its word. The
    function's attribute ``fit``, if it has one, learns.

    Raises:
        InvalidArgument: If there is no such function.
    """
    if name in METHODS:
        return
    module, _, function = name.removeprefix(OWN).partition(":")
    if not module or not function:
        raise InvalidArgument(f"Expected python:package.module:function, got {name!r}.")
    try:
        score = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InvalidArgument(f"Cannot import {name}: {error}") from error
    _register(name, score, getattr(score, "fit", None))


def _register(name: str, score: Score, fit: Learn | None) -> None:
    if name in METHODS or name in _COLUMNS:
        raise InvalidArgument(f"Expected a new name for a method, got {name!r}, which is taken.")
    options = {"fit": None} if fit is not None else {}
    functions = (score,) if fit is None else (score, fit)
    plan = partial(_plan, score, fit)
    METHODS[name] = Method(name, "A score of your own.", plan, options, functions=functions)


def own_digest(method: Method) -> str | None:
    """Return what tells a user's own score from another one of its name.

    Returns:
        A SHA-256 of its functions and all that they refer to; empty where there is none, as they
        refer to more than can be compared. None for gradscore's own scores.
    """
    return (fingerprint(method.functions) or "") if method.functions else None


def _plan(score: Score, fit: Learn | None, spec: ScoreSpec, run: RecordedRun) -> Plan:
    require_closed_form(run)
    sets = find_fit_sets(spec, run) if fit is not None else FitSets()

    def learn() -> tuple[LastLayer, list[Any]]:
        head = last_layer(run)
        # The score takes what was learned as one more argument, where there is anything.
        fits = [(one,) for one in _fits(spec, fit, head, run, sets)] if fit is not None else [()]
        return head, fits

    how = {"fit": learn, "notice": sets.notice, "learned_from": sets.names}
    return Plan(partial(_score, spec, score), FIELDS[1:], **how)


def _fits(
    spec: ScoreSpec, fit: Learn, head: LastLayer, run: RecordedRun, sets: FitSets
) -> list[Any]:
    """Return what was learned for each fold: from the run, or now, and then kept if it can be."""
    mark = fingerprint(fit)
    entry = describe_fit(run.info, spec.method, sets.names, {"own": mark, **sets.settings})
    arrays = run.read_fit(entry.name) if mark else None
    if arrays is None:
        folds = range(sets.folds) if sets.folds > 1 else (None,)
        fits = [_learned(spec, fit, head, run, sets, fold) for fold in folds]
        arrays = pack(fits) if mark else None
        if arrays is None:
            return fits
        # A run that is read-only, or being written by another process, can be scored all the same.
        with suppress(RunError):
            run.keep_fit(entry, arrays)
    try:
        return unpack(arrays, sets.folds)
    except ValueError as error:
        raise RunError(
            f"The fit {entry.name} of the run {run.path} is damaged: {error}."
        ) from error


def _learned(
    spec: ScoreSpec, fit: Learn, head: LastLayer, run: RecordedRun, sets: FitSets, fold: int | None
) -> Any:
    read = [partial(finite_blocks, run, name, FIELDS) for name in sets.names]
    parts = list(read_rows(read, fold))
    features, logits = (torch.cat([getattr(p, n) for p in parts]) for n in FIELDS[1:])
    check_fit_size(len(logits))
    with _named(spec, "fit"):
        return fit(features, logits, head)


def _score(
    spec: ScoreSpec, score: Score, state: tuple[LastLayer, list[tuple]], block: Block
) -> Tensor:
    head, fits = state

    def scores(rows: Rows, learned: tuple) -> Tensor:
        with _named(spec, "score"):
            found = score(rows.features, rows.logits, head, *learned)
            return _checked(spec, found, rows)

    return score_by_fold(block, fits, scores)


@contextmanager
def _named(spec: ScoreSpec, what: str) -> Iterator[None]:
    """Tell an error within a user's function as one of the method.

    Raises:
        InvalidArgument: In its place; the error itself is its cause.
    """
    try:
        yield
    except (GradScoreError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InvalidArgument(f"The {what} of method {spec.method} failed: {reason}") from error


def _checked(spec: ScoreSpec, scores: Any, rows: Rows) -> Tensor:
    """Return a user's scores as float64.

    Raises:
        InvalidArgument: If there is not one a row.
    """
    found = torch.as_tensor(scores).detach().double().cpu()
    # Not by len(rows): a graph that is exported would take this one number of rows alone.
    if found.ndim != 1 or found.shape[0] != rows.logits.shape[0]:
        raise InvalidArgument(
            f"Expected {spec.method} to return scores [{len(rows)}], got {list(found.shape)}."
        )
    return found
