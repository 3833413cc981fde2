"""What a detector shall keep, and which score where none is named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradscore.choosing import asked_fit, choose_by_half, read_choice
from gradscore.choosing.choice import ChosenBy
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
        chosen_by: The images that chose the score, where it was chosen: they give no threshold.
    """

    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tpr: Share = "0.95"
    guarantee: str = "pac"
    confidence: Share = "0.95"
    cross_fit: bool = False
    notices: Sequence[str] = ()
    chosen_by: Sequence[ChosenBy] = ()

    def of_run(self, run: RecordedRun) -> "Wanted":
        """Return the same with a score: what `choose` recommended for a run, else energy.

        Where a score was chosen, one half of the same ID images chooses anew: these may teach the
        score, and give no threshold. Options that are given go before those of the choice.

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
        whole, record = found
        choice = choose_by_half(run, record.id, asked_fit(record))
        spec = choice.spec
        given = {name: value for name, value in self.options.items() if value is not None}
        chosen = {name: getattr(spec, name) for name in spec.settings()}
        if "fit" in chosen and run.sets[spec.fit].role == "id":
            del chosen["fit"]  # its half that chose teaches, as without a name
        who = " and ".join(
            f"{one.images:,} of the {one.of:,} images of {one.name}" for one in choice.chosen_by
        )
        other = "" if spec == whole else f" (all images chose {whole.title()})"
        told = [
            f"the score is {spec.title()}, chosen by {who}{other}; none of these gives the "
            "threshold"
        ]
        if record.own == "":
            told.append(
                f"whether {spec.method} is still the function that was chosen cannot be seen: it "
                "refers to more than can be compared"
            )
        if choice.warning:
            told.append(choice.warning.removesuffix("."))
        how = {"method": spec.method, "options": chosen | given, "chosen_by": choice.chosen_by}
        return replace(self, **how, notices=told)

    def of_model(self) -> "Wanted":
        """Return the same with a score, for images of a model in memory."""
        if self.method is not None:
            return self
        told = f"no score was chosen: {DEFAULT} is taken; `gs.choose` says which one to trust"
        return replace(self, method=DEFAULT, notices=(told,))
