"""The two tables that a choice is made of: the shifts, and what each score is worth on them.

far: surrogates of ID images, changed until they show nothing known. near: ID images of classes
that the head is robbed of.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gradscore.choosing.choice import Row
from gradscore.choosing.holdout import FEWEST_CLASSES, FEWEST_IMAGES, HeldOutRun, holdouts
from gradscore.choosing.ranking import Shift, rank
from gradscore.errors import GradScoreError
from gradscore.methods import RecordedRun, ScoreSpec
from gradscore.run import BASE, extract_command
from gradscore.run.names import SURROGATE
from gradscore.scoring import Scores, score_sets

KEPT_PREDICTIONS = 0.5
"""Share of predictions above which a surrogate is no shift for a model."""
RECORD = ("--layers", "last", "--record", "surrogates")
"""What records surrogates on the command line."""


def surrogates(run: RecordedRun, names: Sequence[str], notes: list[str]) -> list[str]:
    """Return the names of a run's surrogate sets of some sets; unfinished ones are told of."""
    made = [
        name
        for name, entry in run.sets.items()
        if entry.role == SURROGATE and name.partition("~")[0] in names
    ]
    for name in made:
        if not run.sets[name].complete(BASE):
            done = f"{run.sets[name].done(BASE):,} of {run.sets[name].rows:,} images"
            notes.append(
                f"Surrogate {name} was left out: {done} are recorded; go on with "
                f"{extract_command(run, *RECORD)}."
            )
    return [name for name in made if run.sets[name].complete(BASE)]


def score_columns(scored: Mapping[str, Scores], names: Iterable[str]) -> NDArray[np.float64]:
    """Return the scores of some sets behind each other, shape ``[scores, rows]``."""
    return np.concatenate([np.stack(list(scored[n].columns.values())) for n in names], axis=1)


def far_shifts(
    names: Sequence[str], scored: Mapping[str, Scores], notes: list[str]
) -> tuple[list[Shift], bool]:
    """Return a shift a surrogate that is one for the model, and whether none is: then all.

    Args:
        names: The ID sets.
        scored: The scores of these and of their surrogates, by set name.
        notes: Takes what is left out, and why.
    """
    by_kind: dict[str, list[str]] = {}
    for name in scored:
        if "~" in name:
            by_kind.setdefault(name.partition("~")[2], []).append(name)
    ids, shares = score_columns(scored, names), {}
    for kind, made in by_kind.items():
        kept = [_kept(scored[name.partition("~")[0]], scored[name]) for name in made]
        shares[kind] = float(np.concatenate(kept).mean())
    blind = bool(shares) and min(shares.values()) > KEPT_PREDICTIONS
    for kind, share in shares.items() if not blind else ():
        if share > KEPT_PREDICTIONS:
            notes.append(
                f"Surrogate {kind} was left out: the model keeps {share:.0%} of its predictions "
                "on it (more than half): it shows this model little that is new."
            )
    shifts = [
        Shift(kind, ids, score_columns(scored, made))
        for kind, made in by_kind.items()
        if blind or shares[kind] <= KEPT_PREDICTIONS
    ]
    return shifts, blind


def _kept(ids: Scores, surrogate: Scores) -> NDArray[np.bool_]:
    """Return for which surrogates the model predicts what it predicts for their image."""
    predicted = dict(zip(ids.path.tolist(), ids.predicted.tolist(), strict=True))
    pairs = zip(surrogate.path.tolist(), surrogate.predicted.tolist(), strict=True)
    return np.array([predicted.get(path) == now for path, now in pairs], bool)


def near_shifts(
    store: RecordedRun,
    names: Sequence[str],
    specs: Sequence[ScoreSpec],
    scored: Mapping[str, Scores],
    notes: list[str],
) -> tuple[list[ScoreSpec], list[Shift]]:
    """Return the scores that need no gradient, and a shift a fold of classes.

    Args:
        store: The run.
        names: The ID sets.
        specs: The scores that are compared.
        scored: Their scores of these sets, by set name.
        notes: Takes what is left out, and why.
    """
    classes = store.info.classes
    predicted = np.concatenate([scored[name].predicted for name in names])
    folds = []
    for place, fold in enumerate(holdouts(classes)):
        held = np.isin(predicted, fold.dropped)
        if min(held.sum(), (~held).sum()) >= FEWEST_IMAGES:
            folds.append((f"classes {place + 1}", HeldOutRun(store, fold), held))
    if classes < FEWEST_CLASSES:
        few = f"a head of {classes} classes has none to spare"
        notes.append(f"There is no near table: {few} (at least {FEWEST_CLASSES}).")
    elif not folds:
        few = f"no fold of classes has {FEWEST_IMAGES} images that are predicted as one of them"
        notes.append(f"There is no near table: {few}.")
    if not folds:
        return [], []
    able = [spec for spec in specs if all(_can(spec, run) for _, run, _ in folds)]
    shifts = []
    for name, run, held in folds:
        scores = score_columns(score_sets(run, names, able), names)
        shifts.append(Shift(name, scores[:, ~held], scores[:, held]))
    return able, shifts


def _can(spec: ScoreSpec, run: HeldOutRun) -> bool:
    """Say whether a score can be learned without the held-out classes, and needs no gradient."""
    try:
        plan = spec.definition.plan(spec, run)
        if plan.fit:
            plan.fit()
    except GradScoreError:
        return False
    return True


def ranked_rows(specs: Sequence[ScoreSpec], shifts: Sequence[Shift]) -> list[Row]:
    """Return what each score is worth on some shifts, best first; nothing without any."""
    if not specs or not shifts:
        return []
    return [Row(specs[ranked.place], ranked) for ranked in rank(shifts)]
