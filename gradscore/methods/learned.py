"""Scores of features, logits, last layer and block means, some of them learned from ID images.

No labels are needed. What is learned comes from a set to fit to, or from the ID set itself; its
rows are then scored out of fold: by what was learned from the other half of them. The rows of all
other sets take turns between the two halves, so that no set has an advantage.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradscore.errors import NotRecorded
from gradscore.methods.activation import (
    ASH_PERCENTILE,
    REACT_PERCENTILE,
    SCALE_PERCENTILE,
    ash,
    fit_react,
    react,
    scale,
)
from gradscore.methods.base import Method, Plan, RecordedRun, ScoreSpec
from gradscore.methods.block import Block
from gradscore.methods.boundary import fdbd, fit_fdbd
from gradscore.methods.fitted import Arrays, fitted, require_sets
from gradscore.methods.fitted import Source as ArraySource
from gradscore.methods.gradnorm import require_closed_form
from gradscore.methods.laplace import fit_laplace, laplace_energy, laplace_energy_blocks
from gradscore.methods.neighbours import NEIGHBOURS, fit_knn, fit_nnguide, knn, nnguide
from gradscore.methods.rows import FEW, FEWEST, FOLDS, Fit, LastLayer, Rows, Source
from gradscore.methods.subspace import fit_vim, vim
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
    """

    score: Callable[[Rows, Fit, LastLayer, ScoreSpec], Tensor]
    learn: Callable[[Source, LastLayer, ScoreSpec, list[str]], Fit] | None = None
    depends: tuple[str, ...] = ()
    blocks: bool = False

    def plan(self, spec: ScoreSpec, run: RecordedRun) -> Plan:
        """Return how the score follows from a run.

        Raises:
            InvalidArgument: If the set to fit to is unknown.
            ModelError: If the model's last layer is not linear at one position.
            NotRecorded: If the run lacks block means, or images to fit to.
        """
        require_closed_form(spec, run)
        passes = (block_pass(run),) if self.blocks else ()
        name, own, notice = fit_set(spec, run) if self.learn else ("", False, "")
        fit = partial(self._fit, spec, run, name, FOLDS if own else 1, passes)
        score, sets = partial(self._score, spec), (name,) if name else ()
        return Plan(score, FIELDS[1:], passes, fit=fit, notice=notice, learned_from=sets)

    def _fit(
        self, spec: ScoreSpec, run: RecordedRun, name: str, folds: int, passes: tuple[str, ...]
    ) -> State:
        """Learn from a set of the run, or load what was learned."""
        with torch.device("cpu"):
            head = last_layer(run)
            if self.learn is None:
                return head, [{}]
            settings = {option: getattr(spec, option) for option in self.depends}
            stages = list(run.info.passes[BLOCKS].details["channels"]) if self.blocks else []
            learn = partial(self._learn, spec, head, stages, folds)
            how = {"settings": {**settings, "folds": folds}, "fields": FIELDS, "passes": passes}
            arrays = fitted(run, spec.method, [name], learn, **how)
            return head, _unpacked(arrays, folds)

    def _learn(
        self, spec: ScoreSpec, head: LastLayer, stages: list[str], folds: int, source: ArraySource
    ) -> dict[str, Tensor]:
        learned = {}
        for fold in range(folds):
            rows = partial(read_rows, source, fold if folds > 1 else None)
            for name, values in self.learn(rows, head, spec, stages).items():
                single = values.dtype is torch.float32
                learned[f"fold{fold}.{name}"] = values if single else values.double()
        return learned

    def _score(self, spec: ScoreSpec, state: State, block: Block) -> Tensor:
        with torch.device("cpu"):
            return self._score_here(spec, state, block)

    def _score_here(self, spec: ScoreSpec, state: State, block: Block) -> Tensor:
        head, fits = state
        rows = rows_of(block.arrays)
        if len(fits) == 1:
            return self.score(rows, fits[0], head, spec)
        fold_of = torch.as_tensor(block.arrays["index"]) % FOLDS
        scores = torch.empty(len(rows), dtype=torch.float64)
        for fold, fit in enumerate(fits):
            mine = fold_of == fold
            if mine.any():
                scores[mine] = self.score(rows[mine], fit, head, spec)
        return scores


def fit_set(spec: ScoreSpec, run: RecordedRun) -> tuple[str, bool, str]:
    """Return the set that a score learns from, whether it is tested on it too, and what to say.

    Raises:
        InvalidArgument: If the set is unknown.
        NotRecorded: If there is not one set to choose, or it holds too few images.
    """
    name = spec.fit
    if name is None:
        by_role = [[n for n, s in run.sets.items() if s.role == role] for role in ("fit", "id")]
        candidates = by_role[0] or by_role[1]
        if len(candidates) != 1:
            named = ", ".join(candidates) or "none"
            raise NotRecorded(
                f"Expected one set to fit to, got {named}; name it with `fit='SET'`, or add one "
                f"with {extract_command(run, '--fit-set', 'NAME=PATH')}."
            )
        (name,) = candidates
    require_sets(run, [name])
    entry = run.sets[name]
    own = entry.role in ("id", "ood")
    count = entry.recorded() // FOLDS if own else entry.recorded()
    if count < FEWEST:
        half = f" in half of the set {name}" if own else f" in the set {name}"
        raise NotRecorded(
            f"Expected at least {FEWEST} images to fit to, got {count}{half}; add a set with "
            f"{extract_command(run, '--fit-set', 'NAME=PATH')}."
        )
    few = f", fewer than {FEW}" if count < FEW else ""
    if own:
        how = f"no set to fit to: half of {name}, {count:,} images{few}, scores the other half"
    else:
        how = f"learned from {count:,} images of {name}{few}" if few else ""
    return name, own, how


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


def read_rows(source: ArraySource, fold: int | None) -> Iterator[Rows]:
    """Yield the rows to fit to; of a fold all others."""
    for arrays in source():
        rows = rows_of(arrays)
        yield rows if fold is None else rows[torch.as_tensor(arrays["index"]) % FOLDS != fold]


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


def _method(name: str, summary: str, learner: Learner, **options: Any) -> Method:
    if learner.learn is not None:
        options = {"fit": None, **options}
    return Method(name, summary, plan=learner.plan, options=options)


LEARNED = (
    _method(
        "react",
        "Energy of features clipped at a percentile (Sun, Guo & Li, NeurIPS 2021).",
        Learner(
            lambda rows, fit, head, spec: react(rows, fit, head),
            lambda source, head, spec, stages: fit_react(source, percent=spec.percentile),
            ("percentile",),
        ),
        percentile=REACT_PERCENTILE,
    ),
    _method(
        "ash",
        "ASH-S: small features pruned, the others scaled up (Djurisic et al., ICLR 2023).",
        Learner(lambda rows, fit, head, spec: ash(rows, head, percent=spec.percentile)),
        percentile=ASH_PERCENTILE,
    ),
    _method(
        "scale",
        "All features scaled as ASH-S does, none pruned (Xu et al., ICLR 2024).",
        Learner(lambda rows, fit, head, spec: scale(rows, head, percent=spec.percentile)),
        percentile=SCALE_PERCENTILE,
    ),
    _method(
        "knn",
        "Minus the distance to the k-th nearest ID direction (Sun et al., ICML 2022).",
        Learner(
            lambda rows, fit, head, spec: knn(rows, fit, k=spec.k),
            lambda source, head, spec, stages: fit_knn(source),
        ),
        k=NEIGHBOURS,
    ),
    _method(
        "nnguide",
        "Energy times the mean of the k largest guides (Park et al., ICCV 2023).",
        Learner(
            lambda rows, fit, head, spec: nnguide(rows, fit, k=spec.k),
            lambda source, head, spec, stages: fit_nnguide(source),
        ),
        k=NEIGHBOURS,
    ),
    _method(
        "fdbd",
        "Mean distance to the decision boundaries (Liu & Qin, ICML 2024).",
        Learner(
            lambda rows, fit, head, spec: fdbd(rows, fit, head),
            lambda source, head, spec, stages: fit_fdbd(source),
        ),
    ),
    _method(
        "vim",
        "Energy minus the virtual logit of the features' residual (Wang et al., CVPR 2022).",
        Learner(
            lambda rows, fit, head, spec: vim(rows, fit),
            lambda source, head, spec, stages: fit_vim(source, head, dimension=spec.dimension),
            ("dimension",),
        ),
        dimension=None,
    ),
    _method(
        "laplace_energy",
        "Evidence over the distance of the last layer's input, in natural-gradient units.",
        Learner(
            lambda rows, fit, head, spec: laplace_energy(rows, fit, head=head),
            lambda source, head, spec, stages: fit_laplace(source, clip=spec.clip, head=head),
            ("clip",),
        ),
        clip=None,
    ),
    _method(
        "laplace_energy_blocks",
        "The same, over the distances of the stages' outputs, too.",
        Learner(
            lambda rows, fit, head, spec: laplace_energy_blocks(
                rows, fit, two_sided=spec.two_sided, head=head
            ),
            lambda source, head, spec, stages: fit_laplace(
                source, stages=stages, clip=spec.clip, head=head
            ),
            ("clip",),
            blocks=True,
        ),
        two_sided=False,
        clip=None,
    ),
)
"""The methods of this module."""
