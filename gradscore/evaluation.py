"""From scores to figures: one pair of score vectors, or every OOD set of a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradscore.accuracy import Accuracy, accuracy
from gradscore.choices import METRICS
from gradscore.errors import RunError
from gradscore.influence import NAME, is_large, large_figures
from gradscore.methods import RecordedRun, ScoreSpec
from gradscore.metrics import checked, point_metrics
from gradscore.recorded import Run, open_store
from gradscore.resampling import REPLICATES, bootstrap, interval
from gradscore.run import extract_command
from gradscore.scoring import Scores, known_sets, score_sets

COLUMNS = (
    *("method", "layers", "p", "temperature", "target", "id", "ood"),
    *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")),
)
"""Columns of an evaluation, in order; figures are fractions."""

MORE = ("epsilon", "fit", "k", "dimension", "percentile", "two_sided", "clip")
"""Options that rows hold where a score of the evaluation was given one."""


class Row(dict[str, Any]):
    """One line of a table, by column.

    Args:
        spec: The score that it is of.
        columns: Its values by column.
    """

    def __init__(self, spec: ScoreSpec, columns: Mapping[str, Any]) -> None:
        super().__init__(columns)
        self.spec = spec


class Estimate(NamedTuple):
    """A figure with its 95% interval, all fractions."""

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        """Return the figure itself."""
        return self.value


@dataclass(frozen=True)
class Metrics:
    """How well a score tells ID from OOD; ID is the positive class."""

    auroc: Estimate
    fpr95: Estimate
    aupr_in: Estimate
    aupr_out: Estimate

    def __str__(self) -> str:
        """Return the figures in percent with their intervals."""
        parts = []
        for entry in fields(self):
            value, low, high = (100 * figure for figure in getattr(self, entry.name))
            parts.append(f"{entry.name} {value:.1f} [{low:.1f}, {high:.1f}]")
        return ", ".join(parts)


@dataclass(frozen=True)
class Evaluation:
    """What a run says about its OOD sets.

    Attributes:
        rows: One row a spec and OOD set, and one with ``ood`` = ``mean`` a spec; keys are
            :data:`COLUMNS`, then ``epsilon`` and ``fit`` where a spec perturbs inputs or
            learns from a set; an option that the method does not honour is None.
        accuracies: The accuracy of each ID set, by its name; never of several together. A low
            figure shows at once that labels or preprocessing do not fit.
        intervals: What the intervals are where they are not those of the bootstrap; rows then
            hold it, too.
    """

    rows: list[Row]
    accuracies: Mapping[str, Accuracy] = field(default_factory=dict)
    intervals: str = ""


def evaluate(
    id_scores: ArrayLike,
    ood_scores: ArrayLike,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Metrics:
    """Return AUROC, FPR95, AUPR-in and AUPR-out with 95% intervals.

    The intervals are those of the bootstrap; where a side has more than
    :data:`~gradscore.influence.LARGEST_RESAMPLED` scores, those of
    :mod:`gradscore.influence`.

    Args:
        id_scores: Scores of ID inputs, higher = more ID, shape ``[n]``.
        ood_scores: Scores of OOD inputs, shape ``[m]``.
        replicates: Bootstrap replicates; both sides are resampled apart.
        seed: Seed of the resampling.

    Returns:
        The figures, as fractions.

    Raises:
        InvalidArgument: If either side is empty, not a vector, or holds a non-finite score, or
            there are no replicates.

    >>> evaluate([3, 4, 5], [0, 1, 2]).auroc
    Estimate(value=1.0, low=1.0, high=1.0)
    """
    sides = checked(id_scores, "ID"), checked(ood_scores, "OOD")
    if replicates and is_large(*map(len, sides)):
        figures = large_figures(sides[0], [sides[1]])[0]
        return Metrics(*(Estimate(*row) for row in figures.tolist()))
    point = point_metrics(*sides)
    samples = bootstrap(sides[0], [sides[1]], replicates=replicates, seed=seed)[:, 0, 0]
    return Metrics(*(Estimate(*figures) for figures in _with_interval(point, samples).tolist()))


def evaluate_run(
    run: Run | str | PathLike,
    specs: Sequence[ScoreSpec],
    *,
    sets: Iterable[str] | None = None,
    replicates: int = REPLICATES,
    backend: str = "auto",
) -> Evaluation:
    """Return the metrics of every spec on every OOD set of a run, and their mean.

    Args:
        run: The run, or its directory.
        specs: What to score by.
        sets: Names of the sets to use; by default every set with a role.
        replicates: Bootstrap replicates; 0 leaves the intervals out (None).
        backend: As of :func:`gradscore.scoring.iterate_scores`.

    Returns:
        The ID accuracies and the rows, by spec in the order given, then by ID and OOD set in
        the order of the run.

    Raises:
        RunError: If there is no ID or no OOD set among them, or a recorded value is not finite.
        NotRecorded: If the run does not hold what a spec needs.
    """
    store = open_store(run)
    ids, oods = choose_sets(store, sets)
    specs = list(dict.fromkeys(specs))
    scored = score_sets(store, [*ids, *oods], specs, backend, paths=False)
    options = [
        option
        for option in MORE
        if any(getattr(spec, option) != spec.definition.options.get(option) for spec in specs)
    ]
    # One kind of interval in a table, even where one of several ID sets is large.
    large = replicates > 0 and is_large(*map(len, scored.values()))
    rows = []
    for name in ids:
        figures = _figures(scored[name], [scored[ood] for ood in oods], replicates, large)
        for spec, of_spec in zip(specs, figures, strict=True):
            for ood, of_ood in zip([*oods, "mean"], of_spec, strict=True):
                more = {option: getattr(spec, option) for option in options}
                more |= {"intervals": NAME} if large else {}
                rows.append(Row(spec, _columns(spec, name, ood, of_ood) | more))
    accuracies = {name: accuracy(scored[name]) for name in ids}
    return Evaluation(rows, accuracies, NAME if large else "")


def choose_sets(
    store: RecordedRun, sets: Iterable[str] | None = None
) -> tuple[list[str], list[str]]:
    """Return the names of the ID and of the OOD sets, each in the order of the run.

    Raises:
        InvalidArgument: If a set is unknown.
        RunError: If there is no ID or no OOD set among them.
    """
    asked = store.sets if sets is None else known_sets(store, sets)
    names = [name for name in store.sets if name in asked]
    by_role = {
        role: [name for name in names if store.sets[name].role == role] for role in ("id", "ood")
    }
    for role, of_role in by_role.items():
        if not of_role:
            command = extract_command(store, f"--{role}", "NAME=PATH")
            raise RunError(
                f"Expected at least one set with the role {role} to evaluate, got none among "
                f"{', '.join(names) or 'no sets'}; add one with {command}."
            )
    return by_role["id"], by_role["ood"]


def _figures(ids: Scores, oods: Sequence[Scores], replicates: int, large: bool) -> NDArray:
    """Return figures with intervals, shape ``[specs, sets + 1 (mean), 4, 3]``."""
    if large:
        columns = ids.columns.items()
        return np.stack([large_figures(row, (o.columns[k] for o in oods)) for k, row in columns])
    point = np.array(
        [[point_metrics(row, ood.columns[k]) for ood in oods] for k, row in ids.columns.items()]
    )
    point = np.concatenate([point, point.mean(axis=1, keepdims=True)], axis=1)
    if not replicates:
        return np.stack([point, *[np.full_like(point, np.nan)] * 2], axis=-1)
    id_scores, *ood_scores = (list(side.columns.values()) for side in (ids, *oods))
    samples = bootstrap(id_scores, ood_scores, replicates=replicates)
    samples = np.concatenate([samples, samples.mean(axis=2, keepdims=True)], axis=2)
    return _with_interval(point, samples)


def _with_interval(point: NDArray, samples: NDArray) -> NDArray:
    return np.concatenate([point[None], interval(point, samples)]).transpose(
        *range(1, point.ndim + 1), 0
    )


def _columns(spec: ScoreSpec, id_name: str, ood_name: str, figures: NDArray) -> dict[str, Any]:
    """Return the values of :data:`COLUMNS`; ``figures`` are ``[metrics, 3]``."""
    settings = (spec.method, spec.layers, spec.p, spec.temperature, spec.target)
    values = [None if np.isnan(value) else value for value in figures.flatten().tolist()]
    return dict(zip(COLUMNS, (*settings, id_name, ood_name, *values), strict=True))
