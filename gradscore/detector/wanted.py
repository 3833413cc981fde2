"""What a detector shall keep, and which score where none is named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradscore.choosing import read_choice
from gradscore.detector.threshold import Share
from gradscore.methods import RecordedRun
from gradscore.run.hints import command

DEFAULT = "energy"
"""The score where none is named and none was chosen."""


@dataclass(frozen=True)
class Wanted:
    """What a detector shall keep.

    Attributes:
        method: The score; None for what was chosen for the run, else :data:`DEFAULT`.
        options: Its options; ``fit``, the set that it learns from, may be among them.
        tpr: Share of ID images that shall be accepted.
        guarantee: ``pac`` or ``marginal``.
        confidence: Probability with which ``pac`` holds.
        cross_fit: Whether a score that learns is calibrated out of fold.
        notices: What its user should know of the score.
    """

    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tpr: Share = "0.95"
    guarantee: str = "pac"
    confidence: Share = "0.95"
    cross_fit: bool = False
    notices: Sequence[str] = ()

    def of_run(self, run: RecordedRun) -> "Wanted":
        """Return the same with a score: what `choose` recommended for a run, else energy.

        Options that are given go before those of the choice. A choice names no set to learn from:
        ID images that it compared scores on may be among those of the threshold.

        Args:
            run: The run.

        Raises:
            RunError: If the run's choice is damaged, or may not be read.
            NotRecorded: If it rests on a set that is gone, or recommends a method that is not
                known here. A ``python:`` method is not imported because a run names it.
        """
        if self.method is not None:
            return self
        found = read_choice(run)
        if found is None:
            told = (
                f"no score was chosen: {DEFAULT} is taken; {command('choose', run.path)} says "
                "which one to trust"
            )
            return replace(self, method=DEFAULT, notices=(told,))
        spec, record = found
        given = {name: value for name, value in self.options.items() if value is not None}
        chosen = {name: getattr(spec, name) for name in record.options if name != "fit"}
        told = [f"the score is {spec.method}, as `gradscore choose` recommended"]
        if record.warning:
            told.append(f"`gradscore choose` warned: {record.warning.removesuffix('.')}")
        return replace(self, method=spec.method, options=chosen | given, notices=told)

    def of_model(self) -> "Wanted":
        """Return the same with a score, for images of a model in memory."""
        if self.method is not None:
            return self
        told = f"no score was chosen: {DEFAULT} is taken; `gs.choose` says which one to trust"
        return replace(self, method=DEFAULT, notices=(told,))
