"""Which sets of a run a score learns from, and what its user should know of that."""

from dataclasses import dataclass
from typing import Any

from gradscore.errors import NotRecorded
from gradscore.escapes import listed
from gradscore.methods.base import RecordedRun, ScoreSpec
from gradscore.methods.fitted import require_sets
from gradscore.methods.rows import FEW, FEWEST, FOLDING, FOLDS, TESTED
from gradscore.run import extract_command


@dataclass(frozen=True)
class FitSets:
    """The sets that a score learns from.

    Attributes:
        names: Their names.
        folds: How often it learns: once, or, from tested sets, once for each fold of their rows.
        notice: What the user should know, or empty.
    """

    names: tuple[str, ...] = ()
    folds: int = 1
    notice: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """What a fit depends on beside the rows: the folds, and how rows fall into them."""
        return {"folds": self.folds, "folding": FOLDING}


def find_fit_sets(spec: ScoreSpec, run: RecordedRun) -> FitSets:
    """Return the set of the option ``fit``; else all sets to fit to; else all ID sets.

    Raises:
        InvalidArgument: If the set is unknown.
        NotRecorded: If there is no set, or there are too few images.
    """
    names = (spec.fit,) if spec.fit is not None else _sets_by_role(run)
    add = extract_command(run, "--fit-set", "NAME=PATH")
    if not names:
        raise NotRecorded(f"Expected a set to fit to, got none; add one with {add}.")
    require_sets(run, names)
    # Several sets have the same role, unless the user's roles say nothing of them.
    own = any(run.sets[name].role in TESTED for name in names)
    count = sum(run.sets[name].recorded() // (FOLDS if own else 1) for name in names)
    what = listed(names).replace(", ", " and ")
    if count < FEWEST:
        where = f"half of the set {what}" if own else f"the set {what}"
        raise NotRecorded(
            f"Expected at least {FEWEST} images to fit to, got {count} in {where}; add a set with "
            f"{add}."
        )
    few = f" (fewer than {FEW})" if count < FEW else ""
    # The user gave no name to what a detector takes of the sets.
    of = "" if "~" in what else f" of {what}"
    if own:
        how = f"no set to fit to: {count:,} images{of}{few} teach what scores the others"
    else:
        how = f"learned from {count:,} images{of}{few}" if few else ""
    return FitSets(names, FOLDS if own else 1, how)


def _sets_by_role(run: RecordedRun) -> tuple[str, ...]:
    for role in ("fit", "id"):
        names = tuple(name for name, entry in run.sets.items() if entry.role == role)
        if names:
            return names
    return ()
