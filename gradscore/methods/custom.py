"""Scores of a user's own, by name: in every table, plot and choice."""

import importlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradscore.errors import InvalidArgument
from gradscore.methods import METHODS
from gradscore.methods.base import Method, Plan, RecordedRun, ScoreSpec
from gradscore.methods.block import Block
from gradscore.methods.gradnorm import require_closed_form
from gradscore.methods.learned import FIELDS, fit_set, last_layer, read_rows, rows_of
from gradscore.methods.rows import FOLDS, LastLayer, check_fit_size

Score = Callable[..., Tensor]
"""``(features, logits, head)``, and what was learned where the method learns, to scores."""
Learn = Callable[[Tensor, Tensor, LastLayer], Any]
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def register_method(name: str, score: Score, fit: Learn | None = None) -> None:
    """Give a score of your own a name, by which every table, plot and choice knows it.

    >>> import gradscore as gs
    >>> gs.register_method("margin", lambda features, logits, head: (
    ...     logits.topk(2).values @ logits.new_tensor([1.0, -1.0])))

    Args:
        name: Letters a-z, digits and ``_``; none of :data:`gradscore.methods.METHODS`.
        score: From features ``[rows, in_features]`` and logits ``[rows, classes]``, float32, and
            the last layer (``head.weight``, ``head.bias``, ``head(features)``) to scores
            ``[rows]``; higher means more ID. With ``fit`` it takes what that returned, too.
        fit: From features, logits and last layer of all ID rows to fit to, to anything. It is
            asked again in each process, and never sees rows that it is then tested on.

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
    module, _, function = name.removeprefix("python:").partition(":")
    if not module or not function:
        raise InvalidArgument(f"Expected python:package.module:function, got {name!r}.")
    try:
        score = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InvalidArgument(f"Cannot import {name}: {error}") from error
    _register(name, score, getattr(score, "fit", None))


def _register(name: str, score: Score, fit: Learn | None) -> None:
    if name in METHODS:
        raise InvalidArgument(f"Expected a new name for a method, got {name!r}, which is taken.")
    options = {"fit": None} if fit is not None else {}
    METHODS[name] = Method(name, "A score of your own.", partial(_plan, score, fit), options)


def _plan(score: Score, fit: Learn | None, spec: ScoreSpec, run: RecordedRun) -> Plan:
    require_closed_form(spec, run)
    name, own, notice = fit_set(spec, run) if fit is not None else ("", False, "")

    def learn() -> tuple[LastLayer, list[Any]]:
        head = last_layer(run)
        if fit is None:
            return head, []
        folds = range(FOLDS) if own else (None,)
        return head, [_learned(fit, head, run, name, fold) for fold in folds]

    sets, how = (name,) if name else (), partial(_score, spec, score)
    return Plan(how, FIELDS[1:], fit=learn, notice=notice, learned_from=sets)


def _learned(fit: Learn, head: LastLayer, run: RecordedRun, name: str, fold: int | None) -> Any:
    read = partial(run.fit_blocks, name, fields=FIELDS)
    parts = list(read_rows(read, fold))
    features, logits = (torch.cat([getattr(p, n) for p in parts]) for n in FIELDS[1:])
    check_fit_size(len(logits))
    return fit(features, logits, head)


def _score(
    spec: ScoreSpec, score: Score, state: tuple[LastLayer, list[Any]], block: Block
) -> Tensor:
    (head, fits), rows = state, rows_of(block.arrays)
    if len(fits) < FOLDS:
        return _checked(spec, score(rows.features, rows.logits, head, *fits), len(rows))
    fold_of = torch.as_tensor(block.arrays["index"]) % FOLDS
    scores = torch.empty(len(rows), dtype=torch.float64)
    for fold, learned in enumerate(fits):
        mine = rows[fold_of == fold]
        if len(mine):
            found = score(mine.features, mine.logits, head, learned)
            scores[fold_of == fold] = _checked(spec, found, len(mine))
    return scores


def _checked(spec: ScoreSpec, scores: Any, rows: int) -> Tensor:
    """Return a user's scores as float64.

    Raises:
        InvalidArgument: If there is not one a row.
    """
    found = torch.as_tensor(scores).detach().double().cpu()
    if found.shape != (rows,):
        raise InvalidArgument(
            f"Expected {spec.method} to return scores [{rows}], got {list(found.shape)}."
        )
    return found
