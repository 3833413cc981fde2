"""A score's threshold from a run: what it flags, and what its user should know of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscore.detector.about import describe_score, require_one_forward
from gradscore.detector.file import FIT, PREDICTED, SCORES, DetectorInfo
from gradscore.detector.images import (
    CALIBRATION,
    FIT_SET,
    Images,
    choose_images,
    describe_source,
    part_of,
    repeated,
)
from gradscore.detector.threshold import Threshold
from gradscore.detector.wanted import Wanted
from gradscore.errors import DetectorError, InvalidArgument
from gradscore.methods import Plan, RecordedRun, ScoreSpec, find_method, make_spec
from gradscore.methods.custom import own_digest
from gradscore.methods.memory_run import Arrays
from gradscore.methods.part_of_run import PartOfRun
from gradscore.run import extract_command
from gradscore.run.layout import BLOCKS
from gradscore.scoring import Scores, score_sets

ENOUGH_LABELS = 100
"""Of labelled images all classified rightly, so many are told of."""


class Flagged(NamedTuple):
    """How many of some images are flagged."""

    flagged: int
    images: int


class Calibration(NamedTuple):
    """A threshold, and all that a file of it holds.

    Attributes:
        info: What the file says.
        arrays: Its arrays.
        by_class: Predicted class to how many of the calibration images are flagged.
        ood: OOD set of the run to how many of its images are flagged.
    """

    info: DetectorInfo
    arrays: Arrays
    by_class: dict[int, Flagged]
    ood: dict[str, Flagged]


def calibrate_run(
    run: RecordedRun, wanted: Wanted, ids: Sequence[str] | None = None
) -> Calibration:
    """Return the threshold that the ID images of a run give, and what is to be known of it.

    Args:
        run: A run, on disk or in memory.
        wanted: What the detector shall keep.
        ids: Names of the ID sets that give the threshold; None for all with the role ``id``.

    Raises:
        InvalidArgument: If an argument is out of range, a set is unknown, or the images are too
            few for the promise; the message names the number that would do.
        NotRecorded: If the run lacks what the score needs.
        DetectorError: If the score cannot be asked of new images, or what it learned cannot be
            kept in a file.
    """
    wanted = wanted.of_run(run)
    learned_from_images = learns(wanted)
    options = dict(wanted.options)
    fit = options.pop("fit", None)
    images = choose_images(
        run,
        ids,
        learns=learned_from_images,
        fit=fit,
        cross_fit=wanted.cross_fit,
        chosen_by=wanted.chosen_by,
    )
    spec = make_spec(wanted.method, **options, **({"fit": FIT_SET} if learned_from_images else {}))
    ood = [name for name, one in run.sets.items() if one.role == "ood" and _whole(run, name)]
    part = part_of(run, images.calibration, images.fit, ood)
    plan = _one_forward(spec, part)
    scored = score_sets(part, [CALIBRATION, *ood], [spec], paths=False)
    found = _out_of_fold(run, images, spec) if images.folds else scored[CALIBRATION]
    (scores,) = found.columns.values()
    threshold = Threshold.of(
        scores, wanted.tpr, guarantee=wanted.guarantee, confidence=wanted.confidence
    )
    accuracy = _accuracy(found)
    told = [
        *wanted.notices,
        images.notice,
        plan.notice,
        *_doubts(repeated(part, images), threshold, accuracy),
        run.info.notice,
    ]
    if own_digest(find_method(spec.method)) == "":
        told.append(
            f"whether {spec.method} is still this function will not be seen: it refers to "
            "more than can be compared"
        )
    order = np.argsort(scores, kind="stable")
    info = describe_score(
        run,
        spec,
        threshold,
        plan,
        calibration=tuple(describe_source(run, chosen) for chosen in images.calibration),
        fit=tuple(describe_source(run, chosen) for chosen in images.fit),
        cross_fit=bool(images.folds),
        id_accuracy=accuracy,
        notices=tuple(dict.fromkeys(notice for notice in told if notice)),
    )
    arrays = {SCORES: scores[order], PREDICTED: found.predicted[order].astype(np.int64)}
    arrays |= _learned(part, spec) if learned_from_images else {}
    by_class = _by_class(found.predicted, scores < threshold.value)
    return Calibration(
        info, arrays, by_class, {name: _flagged(scored[name], threshold) for name in ood}
    )


def learns(wanted: Wanted) -> bool:
    """Say whether a score learns, and refuse one that new images cannot be asked for.

    Args:
        wanted: What the detector shall keep.

    Raises:
        DetectorError: If it needs more than one forward, or images of noise.
        InvalidArgument: If it learns nothing and shall learn.
    """
    method = find_method(wanted.method)
    require_one_forward(method.name, wanted.options)
    able = "fit" in method.options
    if not able and (wanted.cross_fit or wanted.options.get("fit") is not None):
        raise InvalidArgument(
            f"Method {method.name} learns from no images; leave out `fit` and `cross_fit`."
        )
    if wanted.cross_fit and wanted.options.get("fit") is not None:
        raise InvalidArgument("Expected a set to fit to or a cross-fit, got both.")
    return able


def _whole(run: RecordedRun, name: str) -> bool:
    return run.sets[name].complete("base") and run.sets[name].recorded() > 0


def _one_forward(spec: ScoreSpec, part: PartOfRun) -> Plan:
    """Return how the score follows, from one forward and its gradients.

    Raises:
        DetectorError: If it reads what takes more.
    """
    plan = spec.definition.plan(spec, part)
    for name in plan.passes:
        if part.info.passes[name].kind not in ("norms", BLOCKS):
            raise DetectorError(
                f"Expected recorded gradient norms, got {name} to run again; record them with "
                f"{extract_command(part.path, '--layers', spec.layers or 'all')}, then calibrate."
            )
    return plan


def _out_of_fold(run: RecordedRun, images: Images, spec: ScoreSpec) -> Scores:
    """Return the scores of the calibration images, each by what the other folds taught."""
    found = [
        score_sets(part_of(run, fold, others), [CALIBRATION], [spec], paths=False)[CALIBRATION]
        for others, fold in images.folds
    ]
    fields = ("index", "path", "label", "predicted")
    joined = {name: np.concatenate([getattr(one, name) for one in found]) for name in fields}
    (column,) = found[0].columns
    scores = np.concatenate([one.columns[column] for one in found])
    return Scores(CALIBRATION, **joined, columns={column: scores})


def _accuracy(found: Scores) -> float | None:
    known = found.label >= 0
    return float((found.label == found.predicted)[known].mean()) if known.any() else None


def _doubts(copies: int, threshold: Threshold, accuracy: float | None) -> list[str]:
    """Return what makes the promise doubtful."""
    doubts = []
    count = threshold.images
    if accuracy == 1.0 and count >= ENOUGH_LABELS:
        doubts.append(
            f"all {count:,} images are classified rightly, as images are that a model was trained "
            "on; the promise holds for images that it has not seen"
        )
    if copies:
        doubts.append(
            f"{copies:,} of {count:,} calibration images are copies of others; the promise takes "
            "each for an image of its own"
        )
    if threshold.ties > 1:
        doubts.append(
            f"{threshold.ties:,} calibration scores equal the threshold and are accepted; fewer "
            "images may be flagged than are promised at most"
        )
    return doubts


def _learned(part: PartOfRun, spec: ScoreSpec) -> Arrays:
    """Return the arrays of what the score learned.

    Raises:
        DetectorError: If it learned what is no arrays.
    """
    if part.learned is None:
        raise DetectorError(
            f"Expected a score that learns arrays, got {spec.method}, whose fit returns something "
            "else; a file holds arrays alone."
        )
    return {f"{FIT}{name}": np.ascontiguousarray(values) for name, values in part.learned.items()}


def _by_class(predicted: NDArray, flagged: NDArray) -> dict[int, Flagged]:
    images, of = np.bincount(predicted), np.bincount(predicted, flagged)
    return {int(y): Flagged(int(of[y]), int(images[y])) for y in np.flatnonzero(images)}


def _flagged(found: Scores, threshold: Threshold) -> Flagged:
    (scores,) = found.columns.values()
    return Flagged(int((scores < threshold.value).sum()), len(scores))
