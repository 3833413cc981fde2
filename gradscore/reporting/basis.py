"""What a report rests on: the score that its figures show, and the threshold that cuts it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscore.choosing import read_choice
from gradscore.detector.about import spec_of
from gradscore.detector.detected import run_for, seen_images
from gradscore.detector.file import DetectorInfo, read_detector
from gradscore.errors import InvalidArgument, NotRecorded
from gradscore.methods import RecordedRun, ScoreSpec, make_spec
from gradscore.metrics import keeping_threshold
from gradscore.reporting.words import as_sentence
from gradscore.run import ChoiceRecord, RunStore

DEFAULT = "energy"
"""Score of a run for whose model none was chosen."""
KEPT = 95
"""Percent of the ID images that a threshold keeps where no detector has one."""


@dataclass(frozen=True)
class Basis:
    """Which score is shown, and why.

    Attributes:
        spec: The score.
        source: Where it was taken from: ``detector``, ``method``, ``choice`` or ``default``.
        run: What is scored: the run, or what a detector's score is asked of.
        detector: What the detector's file says, or None.
        detector_path: Where the file is.
        choice: What the run's choice said, or None.
        notices: What the reader should know about either.
    """

    spec: ScoreSpec
    source: str
    run: RecordedRun
    detector: DetectorInfo | None = None
    detector_path: str = ""
    choice: ChoiceRecord | None = None
    notices: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What the score is called; of a detector's, not what it learned from."""
        fit = None if self.detector is not None else self.spec.fit
        return replace(self.spec, fit=fit).title()


@dataclass(frozen=True)
class Cut:
    """Where a report flags: images with a lower score.

    Attributes:
        value: The threshold.
        promised: Whether a detector promises something of it.
        about: What it is, in a sentence.
    """

    value: float
    promised: bool
    about: str


def find_basis(
    store: RunStore,
    detector: str | os.PathLike | None = None,
    method: str | ScoreSpec | None = None,
) -> Basis:
    """Return the score of a report: the detector's, else ``method``, the choice's, or energy.

    Args:
        store: The run.
        detector: A detector's file.
        method: A score, or the name of a method.

    Raises:
        InvalidArgument: If both are given and differ, or the method is unknown.
        DetectorError: If the detector cannot be read, or is of another model.
        RunError: If the run's choice is damaged.
    """
    choice, spec, notices = None, None, ()
    try:
        found = read_choice(store)
        spec, choice = found or (None, None)
    except NotRecorded as error:
        notices = (str(error),)
    if detector is not None:
        info, arrays = read_detector(detector)
        if method not in (None, info.method):
            raise InvalidArgument(
                "Expected a detector or a method, got both; the detector has a method of its "
                f"own, {info.method}."
            )
        run = run_for(store, info, arrays, detector)
        notices = (*notices, *map(as_sentence, info.notices), *seen_images(store, info))
        name = Path(detector).name
        return Basis(spec_of(info), "detector", run, info, name, choice, notices)
    if method is not None:
        own = method if isinstance(method, ScoreSpec) else make_spec(method)
        return Basis(own, "method", store, choice=choice, notices=notices)
    if spec is not None:
        return Basis(spec, "choice", store, choice=choice, notices=notices)
    return Basis(make_spec(DEFAULT), "default", store, choice=choice, notices=notices)


def fall_back(basis: Basis, reason: str) -> Basis:
    """Return a basis of energy in place of a choice that the run cannot give any more."""
    told = f"{basis.spec.method} was chosen, but cannot be shown: {reason}"
    return replace(
        basis, spec=make_spec(DEFAULT), source="default", notices=(*basis.notices, told)
    )


def find_cut(
    basis: Basis, ids: Sequence[NDArray[np.float64]], others: Sequence[NDArray[np.float64]]
) -> Cut | None:
    """Return the threshold that a report starts from; None where there is no score at all.

    Args:
        basis: What the report rests on.
        ids: Scores of the ID sets.
        others: Scores of all other sets.
    """
    if basis.detector is not None:
        threshold = basis.detector.threshold
        promise = threshold.promise()
        about = f"The detector's threshold: {promise}."
        return Cut(threshold.value, True, about)
    if not ids and not others:
        return None
    about = f"No ID set is recorded: the threshold that {KEPT}% of all images here reach."
    if ids:
        about = (
            f"The highest threshold that keeps {KEPT}% of the ID images shown here. It promises "
            "nothing for other images."
        )
    return Cut(keeping_threshold(np.concatenate(ids or others), KEPT), False, about)
