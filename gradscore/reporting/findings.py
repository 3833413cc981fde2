"""What a report says, before any of it is drawn."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gradscore.errors import InvalidArgument, ModelError, NotRecorded
from gradscore.extraction.settings import Progress
from gradscore.methods import ScoreSpec
from gradscore.reporting.basis import Basis, Cut, fall_back, find_basis, find_cut
from gradscore.reporting.operating import Grid, Shares
from gradscore.reporting.scored import Left, ScoredSet, score_for_report, shown_sets
from gradscore.run import RunStore


@dataclass(frozen=True)
class Findings:
    """All that a report says, before it is drawn.

    Attributes:
        store: The run.
        basis: The score, and where it was taken from.
        sets: The sets that are shown, ID first.
        left: The sets that are not, and why.
        cut: The report's threshold; None where no image has a score.
        grid: The thresholds of its slider.
        shares: What each does to each set.
        known: What each does to all ID images together.
    """

    store: RunStore
    basis: Basis
    sets: Sequence[ScoredSet]
    left: Sequence[Left]
    cut: Cut | None
    grid: Grid | None = None
    shares: Sequence[Shares] = field(default_factory=tuple)
    known: Shares | None = None

    def of_role(self, role: str | None) -> list[ScoredSet]:
        """Return the sets of a role."""
        return [one for one in self.sets if one.role == role]


def gather(
    store: RunStore,
    detector: str | os.PathLike | None,
    method: str | ScoreSpec | None,
    asked: Sequence[str],
    progress: Progress,
) -> Findings:
    """Return what a report says."""
    names, left = shown_sets(store, asked)
    basis = find_basis(store, detector, method)
    try:
        sets, unscored = score_for_report(store, basis.run, basis.spec, names, progress)
    except (NotRecorded, ModelError, InvalidArgument) as error:
        if basis.source != "choice":
            raise
        basis = fall_back(basis, str(error))
        sets, unscored = score_for_report(store, basis.run, basis.spec, names, progress)
    ids = [one.scores for one in sets if one.role == "id"]
    others = [one.scores for one in sets if one.role != "id"]
    cut = find_cut(basis, ids, others)
    found = Findings(store, basis, sets, [*left, *unscored], cut)
    if cut is None or not sets:
        return found
    grid = Grid.of([one.scores for one in sets], ids, cut)
    shares = [Shares.of(one.scores, grid.thresholds) for one in sets]
    known = Shares.of(np.concatenate(ids), grid.thresholds) if ids else None
    return Findings(store, basis, sets, found.left, cut, grid, shares, known)
