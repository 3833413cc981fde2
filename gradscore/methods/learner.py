"""How a score is learned from a run, out of fold where it is tested on the same rows.

No labels are needed. What is learned comes from sets to fit to, or from the ID sets themselves;
their rows are then scored out of fold: by what was learned from the other half of them. The rows
of all other sets are shared out between the two halves, so that no set has an advantage.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradscore.errors import NotRecorded
from gradscore.methods.base import Plan, RecordedRun, ScoreSpec
from gradscore.methods.block import Block
from gradscore.methods.fit_sets import FitSets, find_fit_sets
from gradscore.methods.fitted import Arrays, fitted
from gradscore.methods.fitted import Source as ArraySource
from gradscore.methods.gradnorm import require_closed_form
from gradscore.methods.rows import Fit, LastLayer, Rows, Source, fold_of
from gradscore.run import extract_command
from gradscore.run.layout import BLOCKS

FIELDS = ("index", "features", "logits")
State = tuple[LastLayer, list[Fit]]
"""The last layer, and what was learned: once, or once for each fold."""


@dataclass(frozen=True)
class Learner:
    """How a score is learned and computed.

    Attributes:
        score: ``(rows, fit, last layer, spec) -> scores [rows]``, float64.
        learn: ``(source, last layer, spec, stages) -> fit``; None where nothing is learned.
        depends: Options of the spec that the fit depends on.
        blocks: Whether block means are read.
        remarks: ``(fit, stages) -> clauses``: what the user should know of a fit.
    """

    score: Callable[[Rows, Fit, LastLayer, ScoreSpec], Tensor]
    learn: Callable[[Source, LastLayer, ScoreSpec, list[str]], Fit] | None = None
    depends: tuple[str, ...] = ()
    blocks: bool = False
    remarks: Callable[[Fit, list[str]], list[str]] | None = None

    def plan(self, spec: ScoreSpec, run: RecordedRun) -> Plan:
        """Return how the score follows from a run.

        Raises:
            InvalidArgument: If the set to fit to is unknown.
            ModelError: If the model's last layer is not linear at one position.
            NotRecorded: If the run lacks block means, or images to fit to.
        """
        require_closed_form(run)
        passes = (block_pass(run),) if self.blocks else ()
        sets = find_fit_sets(spec, run) if self.learn else FitSets()
        fit = partial(self._fit, spec, run, sets, passes)
        how = {"fit": fit, "notice": sets.notice, "learned_from": sets.names}
        if self.remarks:
            how["remarks"] = partial(self._remarks, self._stages(run))
        return Plan(partial(self._score, spec), FIELDS[1:], passes, **how)

    def _fit(
        self, spec: ScoreSpec, run: RecordedRun, sets: FitSets, passes: tuple[str, ...]
    ) -> State:
        """Learn from sets of the run, or load what was learned."""
        with torch.device("cpu"):
            head = last_layer(run)
            if self.learn is None:
                return head, [{}]
            settings = {option: getattr(spec, option) for option in self.depends}
            settings |= sets.settings
            learn = partial(self._learn, spec, head, self._stages(run), sets.folds)
            how = {"settings": settings, "fields": FIELDS, "passes": passes}
            arrays = fitted(run, spec.method, sets.names, learn, **how)
            return head, _unpacked(arrays, sets.folds)

    def _stages(self, run: RecordedRun) -> list[str]:
        return list(run.info.passes[BLOCKS].details["channels"]) if self.blocks else []

    def _remarks(self, stages: list[str], state: State) -> list[str]:
        clauses = (clause for fit in state[1] for clause in self.remarks(fit, stages))
        return list(dict.fromkeys(clauses))

    def _learn(
        self, spec: ScoreSpec, head: LastLayer, stages: list[str], folds: int, *sets: ArraySource
    ) -> dict[str, Tensor]:
        learned = {}
        for fold in range(folds):
            rows = partial(read_rows, sets, fold if folds > 1 else None)
            for name, values in self.learn(rows, head, spec, stages).items():
                single = values.dtype is torch.float32
                learned[f"fold{fold}.{name}"] = values if single else values.double()
        return learned

    def _score(self, spec: ScoreSpec, state: State, block: Block) -> Tensor:
        with torch.device("cpu"):
            return self._score_here(spec, state, block)

    def _score_here(self, spec: ScoreSpec, state: State, block: Block) -> Tensor:
        head, fits = state
        return score_by_fold(block, fits, lambda rows, fit: self.score(rows, fit, head, spec))


def score_by_fold(
    block: Block, fits: Sequence[Any], score: Callable[[Rows, Any], Tensor]
) -> Tensor:
    """Return the scores of a block's rows, each by the fit that did not see it.

    Args:
        block: Consecutive rows of a set.
        fits: What was learned: once, or once for each fold.
        score: From rows and a fit to scores ``[rows]``, float64.
    """
    rows = rows_of(block.arrays)
    if len(fits) == 1:
        return score(rows, fits[0])
    folds = fold_of(block.arrays["index"])
    scores = torch.empty(len(rows), dtype=torch.float64)
    for fold, fit in enumerate(fits):
        mine = folds == fold
        if mine.any():
            scores[mine] = score(rows[mine], fit)
    return scores


def block_pass(run: RecordedRun) -> str:
    """Return the name of the pass that holds the block means.

    Raises:
        NotRecorded: If the run does not hold it; the message says what to do.
    """
    if BLOCKS in run.info.passes:
        return BLOCKS
    if any(name.startswith("block") for name in run.info.groups):
        raise NotRecorded(
            "The run holds no block means; record them with "
            f"{extract_command(run, '--layers', 'last')}."
        )
    raise NotRecorded(
        f"No stages were found in {run.info.model}, and so there are no block means; "
        "laplace_energy needs none."
    )


def last_layer(run: RecordedRun) -> LastLayer:
    """Return the last layer of a run's model; without a bias its bias is 0."""
    weights = run.head()
    weight = torch.from_numpy(weights["weight"])
    bias = torch.from_numpy(weights["bias"]) if "bias" in weights else weight.new_zeros(())
    return LastLayer(weight, bias.expand(len(weight)))


def read_rows(sets: Sequence[ArraySource], fold: int | None) -> Iterator[Rows]:
    """Yield the rows of the sets to fit to; of a fold all others."""
    for arrays in chain.from_iterable(source() for source in sets):
        rows = rows_of(arrays)
        yield rows if fold is None else rows[fold_of(arrays["index"]) != fold]


def rows_of(arrays: Any) -> Rows:
    """Return the rows in arrays that were read from a run."""
    blocks = {
        name.removeprefix(f"{BLOCKS}/"): torch.as_tensor(means)
        for name, means in arrays.items()
        if name.startswith(f"{BLOCKS}/")
    }
    return Rows(*(torch.as_tensor(arrays[name]) for name in FIELDS[1:]), blocks)


def _unpacked(arrays: Arrays, folds: int) -> list[Fit]:
    fits: list[Fit] = [{} for _ in range(folds)]
    for name, values in arrays.items():
        fold, _, inner = name.partition(".")
        fits[int(fold.removeprefix("fold"))][inner] = torch.from_numpy(values)
    return fits
