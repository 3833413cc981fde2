"""The choice: every score of a run, asked of its own ID images, and the one to take."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.choosing.holdout import FEWEST_CLASSES, FEWEST_IMAGES, HeldOutRun, holdouts
from gradscore.choosing.ranking import Ranked, Shift, rank, recommended
from gradscore.choosing.specs import choice_specs, cost
from gradscore.errors import GradScoreError, NotRecorded, RunError
from gradscore.methods import RecordedRun, ScoreSpec
from gradscore.recorded import Run, open_store
from gradscore.run import ChoiceRecord, RunStore, ScoreRecord, extract_command
from gradscore.run.names import CHOICE_FILE, SURROGATE
from gradscore.scoring import Scores, known_sets, score_sets

KEPT_PREDICTIONS = 0.5
"""Share of predictions above which a surrogate is no shift for a model."""
LEAST_FAR, LEAST_NEAR = 0.80, 0.85
"""AUROC below which no score is to be trusted; proposed, not validated."""


@dataclass(frozen=True)
class Row:
    """What one score is worth.

    Attributes:
        spec: The score.
        ranked: Its value, interval and AUROCs.
    """

    spec: ScoreSpec
    ranked: Ranked

    def to_record(self) -> ScoreRecord:
        """Return the row as a file holds it."""
        found = self.ranked
        figures = (found.value, found.low, found.high, found.aurocs, found.tied)
        return ScoreRecord(self.spec.method, options_of(self.spec), *figures)


@dataclass(frozen=True)
class Choice:
    """Which score to trust.

    Attributes:
        spec: The recommended score.
        by: ``far`` or ``near``: the table that it was taken from.
        warning: Why no score is to be trusted, or None.
        far: Scores by how well they tell ID images from surrogates, best first; empty where no
            surrogates are recorded.
        near: The same for images of classes that the head lacks; empty where there are none.
        notes: What was left out of a table, and why.
        sets: Names of the ID sets.
    """

    spec: ScoreSpec
    by: str
    warning: str | None
    far: Sequence[Row]
    near: Sequence[Row]
    notes: Sequence[str] = field(default_factory=tuple)
    sets: Sequence[str] = field(default_factory=tuple)

    def to_record(self) -> ChoiceRecord:
        """Return the choice as a file holds it."""
        return ChoiceRecord(
            {"method": self.spec.method, **options_of(self.spec)},
            self.by,
            self.warning,
            list(self.notes),
            list(self.sets),
            [row.to_record() for row in self.far],
            [row.to_record() for row in self.near],
        )

    def to_json(self) -> str:
        """Return the same as text; equal choices give equal bytes."""
        return self.to_record().to_json()


def choose(
    run: Run | RecordedRun | str | os.PathLike,
    *,
    sets: Iterable[str] = (),
    fit: str | None = None,
    keep: bool = True,
) -> Choice:
    """Return which score to trust for a run's model, asked of its ID images alone.

    Sets with the role ``ood`` are never read.

    Args:
        run: The run, or its directory.
        sets: Names of the ID sets; by default every set with that role.
        fit: The set that methods learn from; by default as they choose it.
        keep: Whether the run keeps the choice, where it can be written.

    Raises:
        InvalidArgument: If a set is unknown.
        NotRecorded: If there is neither a surrogate nor a class to hold out.
    """
    store = open_store(run)
    names = known_sets(store, sets) or [n for n, s in store.sets.items() if s.role == "id"]
    if not names:
        command = extract_command(store, "--id", "NAME=PATH")
        raise NotRecorded(f"The run holds no ID set to choose by; add one with {command}.")
    specs = choice_specs(store, fit)
    notes: list[str] = []
    scored = score_sets(store, [*names, *_surrogates(store, names)], specs)
    shifts, blind = _far(store, names, scored, notes)
    far = _ranked(specs, shifts)
    near_specs, shifts = _near(store, names, specs, scored, notes)
    near = _ranked(near_specs, shifts)
    if not far and not near:
        raise NotRecorded(" ".join(notes))
    table = far or near
    costs = {row.ranked.place: cost(row.spec, store) for row in table}
    best = recommended([row.ranked for row in table], costs)
    spec = next(row.spec for row in table if row.ranked is best)
    choice = Choice(
        spec,
        "far" if far else "near",
        find_warning(far, near, blind),
        far,
        near,
        tuple(notes),
        tuple(names),
    )
    if keep:
        # A run that is read-only, or being written by another process, can be asked all the same.
        with suppress(RunError), RunStore.open_for_writing(store.path) as writable:
            writable.writer.write(CHOICE_FILE, choice.to_json().encode())
    return choice


def ood_aurocs(run: RecordedRun, choice: Choice) -> dict[ScoreSpec, float]:
    """Return the mean AUROC of each score over the run's OOD sets, to check a choice by.

    Returns:
        Nothing where the run holds no OOD set.
    """
    from gradscore.metrics import auroc

    oods = [name for name, entry in run.sets.items() if entry.role == "ood"]
    specs = [row.spec for row in choice.far or choice.near]
    if not oods:
        return {}
    scored = score_sets(run, [*choice.sets, *oods], specs)
    ids = _columns(scored, choice.sets)
    each = [[auroc(i, o) for i, o in zip(ids, _columns(scored, [n]), strict=True)] for n in oods]
    return dict(zip(specs, np.mean(each, axis=0).tolist(), strict=True))


def options_of(spec: ScoreSpec) -> dict[str, Any]:
    """Return the options of a score that are not left out, by name."""
    options = {name: getattr(spec, name) for name in spec.definition.options}
    plain = {k: "inf" if v == np.inf else v for k, v in options.items() if v is not None}
    return plain


def _surrogates(store: RecordedRun, names: Sequence[str]) -> list[str]:
    """Return the names of the finished surrogate sets of some sets."""
    return [
        name
        for name, entry in store.sets.items()
        if entry.role == SURROGATE and name.partition("~")[0] in names and entry.complete("base")
    ]


def _columns(scored: Mapping[str, Scores], names: Iterable[str]) -> NDArray[np.float64]:
    """Return the scores of some sets behind each other, shape ``[scores, rows]``."""
    return np.concatenate([np.stack(list(scored[n].columns.values())) for n in names], axis=1)


def _far(
    store: RecordedRun, names: Sequence[str], scored: Mapping[str, Scores], notes: list[str]
) -> tuple[list[Shift], bool]:
    """Return a shift a surrogate that is one for the model, and whether none is: then all."""
    by_kind: dict[str, list[str]] = {}
    for name in scored:
        if "~" in name:
            by_kind.setdefault(name.partition("~")[2], []).append(name)
    if not by_kind:
        command = extract_command(store, "--layers", "last", "--record", "surrogates")
        notes.append(f"Without surrogates there is no far table; record them with {command}.")
    ids, shares = _columns(scored, names), {}
    for kind, made in by_kind.items():
        kept = [_kept(scored[name.partition("~")[0]], scored[name]) for name in made]
        shares[kind] = float(np.concatenate(kept).mean())
    blind = bool(shares) and min(shares.values()) > KEPT_PREDICTIONS
    for kind, share in shares.items() if not blind else ():
        if share > KEPT_PREDICTIONS:
            notes.append(
                f"Surrogate {kind} was left out: the model keeps {share:.0%} of its predictions "
                "on it, so that it is no shift (more than half; proposed, not validated)."
            )
    shifts = [
        Shift(kind, ids, _columns(scored, made))
        for kind, made in by_kind.items()
        if blind or shares[kind] <= KEPT_PREDICTIONS
    ]
    return shifts, blind


def _kept(ids: Scores, surrogate: Scores) -> NDArray[np.bool_]:
    """Return for which surrogates the model predicts what it predicts for their image."""
    predicted = dict(zip(ids.path.tolist(), ids.predicted.tolist(), strict=True))
    pairs = zip(surrogate.path.tolist(), surrogate.predicted.tolist(), strict=True)
    return np.array([predicted.get(path) == now for path, now in pairs], bool)


def _near(
    store: RecordedRun,
    names: Sequence[str],
    specs: Sequence[ScoreSpec],
    scored: Mapping[str, Scores],
    notes: list[str],
) -> tuple[list[ScoreSpec], list[Shift]]:
    """Return the scores that need no gradient, and a shift a fold of classes."""
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
        scores = _columns(score_sets(run, names, able), names)
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


def _ranked(specs: Sequence[ScoreSpec], shifts: Sequence[Shift]) -> list[Row]:
    if not specs or not shifts:
        return []
    return [Row(specs[ranked.place], ranked) for ranked in rank(shifts)]


def find_warning(far: Sequence[Row], near: Sequence[Row], blind: bool) -> str | None:
    """Return why no score is to be trusted, or None."""
    if blind:
        return (
            "No score is to be trusted here: the model predicts the same for most images after "
            "they were shuffled, scrambled or inverted, whatever they show. (The bound, half of "
            "the predictions, is proposed, not validated.)"
        )
    told = []
    for table, least, what in (
        (far, LEAST_FAR, "shuffled and scrambled copies of these images"),
        (near, LEAST_NEAR, "images of classes that the head lacks"),
    ):
        best = max((row.ranked.auroc for row in table), default=1.0)
        if best < least:
            told.append(f"{what} (best AUROC {100 * best:.1f}, below {100 * least:.0f})")
    if not told:
        return None
    return (
        f"No score is to be trusted here: none separates even {' and '.join(told)}. Novel inputs "
        "that look similar will mostly be accepted; take the score for ranking and review, not as "
        "a gate. (The bounds are proposed, not validated.)"
    )
