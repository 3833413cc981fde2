"""The paper's ablations of any run, and several runs side by side.

Huang, Geng & Li, NeurIPS 2021: layers (Table 2), order of the norm (Fig. 4), temperature (Fig. 5),
target (Fig. 3), the factors U and V (Table 5) and KL against GradNorm (Fig. 6); model capacity
(Table 4). All scores of all ablations come from one read of the run.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from os import PathLike, fspath

from gradscore.choices import TARGETS
from gradscore.errors import InvalidArgument
from gradscore.evaluation import Evaluation, Row, evaluate_run
from gradscore.methods import RecordedRun, ScoreSpec
from gradscore.methods.gradnorm import recorded_groups
from gradscore.pivot import BOOTSTRAP
from gradscore.recorded import Run, open_store
from gradscore.resampling import REPLICATES

ORDERS = (0.3, 0.5, 0.8, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, math.inf)
"""Orders of the norm that the paper sweeps (Fig. 4 and Appendix)."""

TEMPERATURES = tuple(2.0**power for power in range(-1, 11))
"""Temperatures that the paper sweeps (Fig. 5): 0.5 to 1024."""


def _layers(run: RecordedRun) -> list[ScoreSpec]:
    return [ScoreSpec("gradnorm", layers=group) for group in recorded_groups(run)]


ABLATIONS: dict[str, Callable[[RecordedRun], list[ScoreSpec]]] = {
    "layers": _layers,
    "p": lambda run: [ScoreSpec("gradnorm", p=p) for p in ORDERS],
    "temperature": lambda run: [ScoreSpec("gradnorm", temperature=t) for t in TEMPERATURES],
    "target": lambda run: [ScoreSpec("gradnorm", target=t) for t in TARGETS],
    "decomposition": lambda run: [ScoreSpec(method) for method in ("u", "v", "gradnorm")],
    "kl": lambda run: [ScoreSpec(method) for method in ("kl", "gradnorm")],
}
"""The scores that each ablation compares."""


def ablation_specs(kind: str, run: Run | str | PathLike) -> list[ScoreSpec]:
    """Return the scores that the ablation ``kind`` compares, in the order of its table.

    Raises:
        InvalidArgument: If the ablation is unknown.
        NotRecorded: If the run holds no gradient norms for ``layers``.
    """
    if kind not in ABLATIONS:
        raise InvalidArgument(f"Unknown ablation {kind!r}; known: {', '.join(ABLATIONS)}.")
    return ABLATIONS[kind](open_store(run))


def ablate(
    run: Run | str | PathLike,
    kinds: str | Iterable[str],
    *,
    sets: Iterable[str] | None = None,
    replicates: int = REPLICATES,
) -> dict[str, Evaluation]:
    """Return the rows of each ablation, all from one read of the run.

    Args:
        run: The run, or its directory.
        kinds: Names of :data:`ABLATIONS`, or one name.
        sets: Names of the sets to use; by default every set with a role.
        replicates: Bootstrap replicates; 0 leaves the intervals out.

    Returns:
        Ablation to its evaluation; rows as :func:`gradscore.evaluation.evaluate_run` gives them.

    Raises:
        InvalidArgument: If an ablation or a set is unknown.
        NotRecorded: If the run does not hold what an ablation needs.
        RunError: If there is no ID or no OOD set.
    """
    store = open_store(run)
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    asked = {kind: ablation_specs(kind, store) for kind in kinds}
    specs = list(dict.fromkeys(spec for of_kind in asked.values() for spec in of_kind))
    everything = evaluate_run(store, specs, sets=sets, replicates=replicates)
    rows = {spec: [row for row in everything.rows if row.spec == spec] for spec in specs}
    return {
        kind: replace(everything, rows=[row for spec in of_kind for row in rows[spec]])
        for kind, of_kind in asked.items()
    }


def compare(
    runs: Sequence[Run | str | PathLike],
    specs: Sequence[ScoreSpec],
    *,
    sets: Iterable[str] | None = None,
    replicates: int = REPLICATES,
) -> list[Row]:
    """Return several runs' evaluations side by side (the paper's Table 4).

    Args:
        runs: The runs or their directories, such as one a model.
        specs: What to score by.
        sets: Names of the sets to use, the same in every run; by default those with a role.
        replicates: Bootstrap replicates; 0 leaves the intervals out.

    Returns:
        The rows of each run in the order given, each beginning with ``run``, ``model`` and the
        ``id_accuracy`` of the row's ID set.

    Raises:
        InvalidArgument: If there is no run, or a set is unknown.
        NotRecorded: If a run does not hold what a spec needs.
    """
    if not runs:
        raise InvalidArgument("Expected at least one run to compare, got none.")
    sets = None if sets is None else list(sets)
    rows = []
    for path in runs:
        store = open_store(path)
        evaluation = evaluate_run(store, specs, sets=sets, replicates=replicates)
        about = {"run": fspath(store.path), "model": store.info.model}
        for row in evaluation.rows:
            right = evaluation.accuracies[row["id"]].share
            rows.append(Row(row.spec, {**about, "id_accuracy": right, **row}))
    if any("intervals" in row for row in rows):
        # Of a large run beside a small one: all rows have the same columns.
        for row in rows:
            row.setdefault("intervals", BOOTSTRAP)
    return rows
