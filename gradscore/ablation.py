"""The paper's ablations of any run, and several runs side by side.

Huang, Geng & Li, NeurIPS 2021: layers (Table 2), order of the norm (Fig. 4), temperature (Fig. 5),
target (Fig. 3), the factors U and V (Table 5) and KL against GradNorm (Fig. 6); model capacity
(Table 4). All questions of all ablations are answered from one read of the run.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Any

from gradscore.errors import InvalidArgument
from gradscore.evaluation import Evaluation, Row, evaluate_run
from gradscore.methods import Question
from gradscore.methods.columns import recorded_groups
from gradscore.metrics import REPLICATES
from gradscore.recorded import Run, open_store

ORDERS = (0.3, 0.5, 0.8, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, math.inf)
"""Orders of the norm that the paper sweeps (Fig. 4 and Appendix)."""

TEMPERATURES = tuple(2.0**power for power in range(-1, 11))
"""Temperatures that the paper sweeps (Fig. 5): 0.5 to 1024."""


def _layers(run: Any) -> list[Question]:
    return [Question("gradnorm", layers=group) for group in recorded_groups(run)]


ABLATIONS: dict[str, Callable[[Any], list[Question]]] = {
    "layers": _layers,
    "p": lambda run: [Question("gradnorm", p=p) for p in ORDERS],
    "temperature": lambda run: [Question("gradnorm", temperature=t) for t in TEMPERATURES],
    "target": lambda run: [Question("gradnorm", target=t) for t in ("uniform", "one-hot")],
    "decomposition": lambda run: [Question(method) for method in ("u", "v", "gradnorm")],
    "kl": lambda run: [Question(method) for method in ("kl", "gradnorm")],
    "grid": lambda run: [
        Question("gradnorm", p=p, temperature=t) for p in ORDERS for t in TEMPERATURES
    ],
}
"""What each ablation asks; ``grid`` is every order at every temperature."""


def ablation_questions(kind: str, run: Run | str | PathLike) -> list[Question]:
    """Return what the ablation ``kind`` asks of a run, in the order of its table.

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
    asked = {kind: ablation_questions(kind, store) for kind in kinds}
    questions = list(dict.fromkeys(q for of_kind in asked.values() for q in of_kind))
    everything = evaluate_run(store, questions, sets=sets, replicates=replicates)
    return {
        kind: replace(everything, rows=_rows_of(of_kind, everything.rows))
        for kind, of_kind in asked.items()
    }


def compare(
    runs: Sequence[Run | str | PathLike],
    questions: Sequence[Question],
    *,
    sets: Iterable[str] | None = None,
    replicates: int = REPLICATES,
) -> list[Row]:
    """Return several runs' evaluations side by side (the paper's Table 4).

    Args:
        runs: The runs or their directories, such as one a model.
        questions: What to score by.
        sets: Names of the sets to use, the same in every run; by default those with a role.
        replicates: Bootstrap replicates; 0 leaves the intervals out.

    Returns:
        The rows of each run in the order given, each beginning with ``run``, ``model`` and the
        ``id_accuracy`` of the row's ID set.

    Raises:
        InvalidArgument: If there is no run, or a set is unknown.
        NotRecorded: If a run does not hold what a question needs.
    """
    if not runs:
        raise InvalidArgument("Expected at least one run to compare, got none.")
    sets = None if sets is None else list(sets)
    rows = []
    for path in runs:
        store = open_store(path)
        evaluation = evaluate_run(store, questions, sets=sets, replicates=replicates)
        about = {"run": fspath(store.path), "model": store.info.model}
        for row in evaluation.rows:
            right = evaluation.accuracies[row["id"]].share
            rows.append({**about, "id_accuracy": right, **row})
    return rows


def _rows_of(questions: Iterable[Question], rows: Iterable[Row]) -> list[Row]:
    keys = ("method", "layers", "p", "temperature", "target")
    by_settings: dict[tuple, list[Row]] = {}
    for row in rows:
        by_settings.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        row
        for question in questions
        for row in by_settings[tuple(getattr(question, key) for key in keys)]
    ]
