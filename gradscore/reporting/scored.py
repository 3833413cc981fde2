"""The scores of a run's sets as a report needs them: one number an image and score, streamed."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradscore.accuracy import Accuracy, read_accuracy
from gradscore.columns import columns_for
from gradscore.errors import GradScoreError, InvalidArgument, NotRecorded
from gradscore.extraction.settings import Progress
from gradscore.methods import RecordedRun, ScoreSpec, column_names
from gradscore.methods.gradnorm import recorded_groups
from gradscore.palette import tone_names
from gradscore.run import BASE, RunStore, SetInfo
from gradscore.run.names import SURROGATE
from gradscore.scoring import Scores, iterate_scores

POINTS = 300
"""Most images of a set that are drawn one by one."""
MOST_SETS = 40
"""Sets that one page shows."""
MOST_LAYERS = 30
"""Groups of layers that are compared; the last layer is always among them."""
SHOWN_ROLES = ("id", "ood", None)
FACTORS = ("u", "v")


@dataclass
class ScoredSet:
    """One set's scores.

    Attributes:
        info: What the run says of it.
        tone: Name of its colour, of :data:`gradscore.palette.TONES`.
        index: Places in its manifest, shape ``[rows]``.
        scores: Shape ``[rows]``, float64; higher means more ID.
        predicted: Classes, shape ``[rows]``, int32.
        accuracy: Of all its labelled images, those without a score here among them.
        layers: Group of parameters to its GradNorm scores, shape ``[rows]``; empty where the run
            lacks them. Those of many groups and rows are read from the disk.
        factors: U and V of some images, shape ``[2, points]``; None where they are not known.
    """

    info: SetInfo
    tone: str
    index: NDArray[np.int64]
    scores: NDArray[np.float64]
    predicted: NDArray[np.int32]
    accuracy: Accuracy
    layers: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    factors: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        """Return the number of images that have a score."""
        return len(self.scores)

    @property
    def name(self) -> str:
        """The set's name."""
        return self.info.name

    @property
    def role(self) -> str | None:
        """The set's role."""
        return self.info.role


@dataclass(frozen=True)
class Left:
    """A set that is not shown, and why."""

    name: str
    reason: str


def score_for_report(
    store: RunStore,
    run: RecordedRun,
    spec: ScoreSpec,
    names: Sequence[str],
    progress: Progress,
) -> tuple[list[ScoredSet], list[Left]]:
    """Return the scores of a run's sets, and the sets that could not be scored.

    Each set is read once. What grows with it is a few numbers an image.

    Args:
        store: The run, which says what is recorded.
        run: What is scored: the run, or images of it.
        spec: The score that the report shows.
        names: Sets to show.
        progress: Is told of each block.

    Raises:
        NotRecorded: If no set can be scored by ``spec``.
        GradScoreError: If a recorded value is not finite, or a file is damaged.
    """
    plan = spec.definition.plan(spec, run)  # raises where the score cannot be had at all
    more = further_specs(run)
    groups: dict[tuple[ScoreSpec, ...], list[str]] = {}
    left = []
    for name in names:
        entry = store.sets[name]
        lacking = [p for p in (BASE, *plan.passes) if not entry.complete(p)]
        if lacking:
            done = entry.done(lacking[0])
            what = "images" if lacking[0] == BASE else f"images of the pass {lacking[0]}"
            left.append(Left(name, f"{done:,} of {entry.rows:,} {what} are recorded so far"))
        elif not entry.recorded():
            left.append(Left(name, "none of its images could be read"))
        else:
            specs = (spec, *(s for s in more if _is_recorded(s, run, entry)))
            groups.setdefault(tuple(dict.fromkeys(specs)), []).append(name)
    scored = []
    able = [run.sets[name] for together in groups.values() for name in together]
    progress.start(sum(entry.recorded() for entry in able), "Scoring")
    try:
        for specs, together in groups.items():
            scored += _score(store, run, specs, together, progress)
    finally:
        progress.finish()
    place = {name: k for k, name in enumerate(names)}
    return sorted(scored, key=lambda one: place[one.name]), left


def shown_sets(store: RunStore, asked: Sequence[str]) -> tuple[list[str], list[Left]]:
    """Return the names of the sets that a report shows, ID first, and those that it leaves out.

    Raises:
        InvalidArgument: If a set that was asked for is unknown.
    """
    for name in asked:
        if name not in store.sets:
            known = ", ".join(store.sets) or "none"
            raise InvalidArgument(f"Unknown set {name!r}; the run holds: {known}.")
    entries = [store.sets[name] for name in dict.fromkeys(asked)] or [*store.sets.values()]
    left = []
    if not asked:
        left += [Left(e.name, "methods learn from it") for e in entries if e.role == "fit"]
        entries = [entry for entry in entries if entry.role in SHOWN_ROLES]
    order = {role: place for place, role in enumerate(SHOWN_ROLES)}
    entries.sort(key=lambda entry: order.get(entry.role, len(order)))
    reason = f"one page shows {MOST_SETS} sets; ask for others by their names"
    left += [Left(entry.name, reason) for entry in entries[MOST_SETS:]]
    return [entry.name for entry in entries[:MOST_SETS]], left


def surrogates(store: RunStore) -> int:
    """Return how many surrogate sets a run holds; they are the choice's alone."""
    return sum(entry.role == SURROGATE for entry in store.sets.values())


def further_specs(run: RecordedRun) -> list[ScoreSpec]:
    """Return what is drawn beside the score itself: GradNorm's factors, and its layers."""
    specs = [ScoreSpec(name) for name in FACTORS if run.info.head.closed_form]
    with suppress(NotRecorded):
        groups = recorded_groups(run)
        inner = groups[: MOST_LAYERS - 1] + groups[-1:] if len(groups) > MOST_LAYERS else groups
        specs += [ScoreSpec("gradnorm", layers=group) for group in inner]
    return specs


def _is_recorded(spec: ScoreSpec, run: RecordedRun, entry: SetInfo) -> bool:
    try:
        plan = spec.definition.plan(spec, run)
    except GradScoreError:
        return False
    # What runs a part of the network again is no figure beside others.
    return not plan.fit and all(entry.complete(name) for name in plan.passes)


def _score(
    store: RunStore,
    run: RecordedRun,
    specs: Sequence[ScoreSpec],
    names: Sequence[str],
    progress: Progress,
) -> list[ScoredSet]:
    columns = dict(zip(specs, column_names(specs), strict=True))
    collected: dict[str, _Collected] = {}
    tones = tone_names({name: entry.role for name, entry in store.sets.items()})
    for block in iterate_scores(run, names, specs):
        if block.set not in collected:
            rows = run.sets[block.set].recorded()
            info = store.sets[block.set]
            collected[block.set] = _Collected(info, tones[info.name], rows, specs)
        collected[block.set].add(block, columns)
        progress.advance(len(block))
    scored = [one.scored() for one in collected.values()]
    for one in scored:
        # What a score learned from is not shown; the model's accuracy is of all images.
        if one.role == "id" and len(one) < one.info.recorded():
            one.accuracy = read_accuracy(store, one.name)
    return scored


class _Collected:
    """A set's scores as they come, in arrays that are there from the start."""

    def __init__(self, info: SetInfo, tone: str, rows: int, specs: Sequence[ScoreSpec]) -> None:
        self.info, self.tone, self.specs, self.done = info, tone, specs, 0
        self.index = np.empty(rows, np.int64)
        self.predicted = np.empty(rows, np.int32)
        layers = [s.layers for s in specs if s == ScoreSpec("gradnorm", layers=s.layers)]
        self.scores = np.empty(rows)
        self.layers = columns_for(layers if len(layers) > 1 else [], rows)
        self.drawn: list[NDArray] = []
        self.step = math.ceil(rows / POINTS)
        self.right = self.labelled = 0

    def add(self, block: Scores, columns: Mapping[ScoreSpec, str]) -> None:
        part = slice(self.done, self.done + len(block))
        self.index[part], self.predicted[part] = block.index, block.predicted
        self.scores[part] = block.columns[columns[self.specs[0]]]
        for layer in self.layers:
            values = block.columns[columns[ScoreSpec("gradnorm", layers=layer)]]
            self.layers.put(layer, part.start, values)
        factors = [block.columns.get(columns.get(ScoreSpec(name))) for name in FACTORS]
        if all(values is not None for values in factors):
            first = -self.done % self.step
            self.drawn.append(np.stack([values[first :: self.step] for values in factors]))
        known = block.label >= 0
        self.labelled += int(known.sum())
        self.right += int((known & (block.label == block.predicted)).sum())
        self.done = part.stop

    def scored(self) -> ScoredSet:
        accuracy = Accuracy(self.right, self.labelled, self.done)
        factors = np.concatenate(self.drawn, axis=1) if self.drawn else None
        values = (self.index, self.scores, self.predicted, accuracy, self.layers, factors)
        return ScoredSet(self.info, self.tone, *values)
