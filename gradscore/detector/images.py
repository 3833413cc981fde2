"""Which images of a run give a threshold, and which ones its score learns from.

The two must be disjoint: a score of images that it learned from is not the score of new ones.
Without a set to fit to, a half of the ID images drawn by a fixed seed is learned from, and the
other half gives the threshold. Images that chose the score never give its threshold; they are that
first half.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from gradscore.choosing.choice import ChosenBy
from gradscore.choosing.halves import images_that_chose, split
from gradscore.detector.file import Source
from gradscore.errors import InvalidArgument, NotRecorded
from gradscore.escapes import listed
from gradscore.methods import RecordedRun
from gradscore.methods.part_of_run import Chosen, Mask, PartOfRun
from gradscore.methods.rows import FEWEST
from gradscore.run import extract_command

FIT_SET, CALIBRATION = "~fit", "~calibration"
"""Names of the images that are learned from and of those that give the threshold."""
FOLDS = 10
"""Of a cross-fit."""


@dataclass(frozen=True)
class Images:
    """The images of a calibration.

    Attributes:
        calibration: Those that give the threshold.
        fit: Those that the score learns from; empty where it learns nothing.
        folds: How the same images do both, each scored by what the others taught; usually empty.
        notice: What the user should know, or empty.
    """

    calibration: Sequence[Chosen]
    fit: Sequence[Chosen] = ()
    folds: Sequence[tuple[Sequence[Chosen], Sequence[Chosen]]] = ()
    notice: str = ""


def choose_images(
    run: RecordedRun,
    ids: Sequence[str] | None,
    *,
    learns: bool,
    fit: str | None,
    cross_fit: bool,
    chosen_by: Sequence[ChosenBy] = (),
) -> Images:
    """Return the images that a calibration takes.

    Args:
        run: The run.
        ids: Names of the ID sets that give the threshold; None for all with the role ``id``.
        learns: Whether the score learns.
        fit: Name of the set that it learns from; None for the sets with the role ``fit``, else a
            half of the ID images.
        cross_fit: Whether the score learns from all ID images but a tenth in turn.
        chosen_by: The images that chose the score: they may teach it, and give no threshold.

    Raises:
        InvalidArgument: If a set is unknown, not of ID images, or to give both.
        NotRecorded: If there are no images, or too few to learn from.
    """
    names = _id_sets(run, ids)
    chose = {one.name: images_that_chose(run, one) for one in chosen_by if one.name in names}
    rest = {name: split(run, name, 1, mask)[0] for name, mask in chose.items()}
    whole = _not_empty(Chosen(name, rest.get(name)) for name in names)
    if not whole:
        raise NotRecorded(
            f"Expected images that did not choose the score, got none in {listed(names)}; give "
            "others, or name the score with `method`."
        )
    if not learns:
        return Images(whole)
    if cross_fit:
        return _crossed(run, names, whole, chose)
    fits = [fit] if fit is not None else [n for n, one in run.sets.items() if one.role == "fit"]
    if not fits:
        return _halves(run, names, chose)
    for name in fits:
        if name not in run.sets:
            raise InvalidArgument(f"Unknown set {name!r}; the run holds: {listed(run.sets)}.")
        if name in names:
            raise InvalidArgument(
                f"Expected other images to learn from than those of the threshold, got {name!r} "
                "for both; leave out `fit` to take half of them for each."
            )
        run.require_complete(name)
    return Images(whole, [Chosen(name) for name in fits])


def part_of(
    run: RecordedRun,
    calibration: Sequence[Chosen],
    fit: Sequence[Chosen],
    ood: Sequence[str] = (),
) -> PartOfRun:
    """Return a run of the images of a calibration, and of some OOD sets."""
    sets = {FIT_SET: ("fit", fit)} if fit else {}
    sets |= {CALIBRATION: ("id", calibration)}
    return PartOfRun(run, sets | {name: ("ood", [Chosen(name)]) for name in ood})


def describe_source(run: RecordedRun, chosen: Chosen) -> Source:
    """Return what a file says of the images that were taken of a set."""
    entry = run.sets[chosen.set]
    places = () if chosen.mask is None else tuple(np.flatnonzero(chosen.mask).tolist())
    images = len(places) if chosen.mask is not None else entry.recorded()
    return Source(entry.name, entry.source, entry.manifest_sha256, images, places)


def repeated(part: PartOfRun, images: Images) -> int:
    """Return how many images of a calibration are copies of others, or of images to fit to.

    Copies have the same logits to the last bit.
    """
    disjoint = images.fit and not images.folds
    known = _digests(part, FIT_SET) if disjoint else np.empty((0, 2), np.uint64)
    own = _digests(part, CALIBRATION)
    return len(own) - (_distinct(np.concatenate([known, own])) - _distinct(known))


def _digests(part: PartOfRun, name: str) -> NDArray[np.uint64]:
    """Return 16 bytes of each image's logits as two numbers, ``[images, 2]``."""
    found = bytearray()  # of millions of images: objects of their own would take five times this
    for arrays in part.blocks(name, ("logits",)):
        for row in np.ascontiguousarray(arrays["logits"]):
            found += hashlib.blake2b(row.data, digest_size=16).digest()
    return np.frombuffer(found, np.uint64).reshape(-1, 2)


def _distinct(digests: NDArray[np.uint64]) -> int:
    """Return how many digests differ."""
    ordered = digests[np.lexsort(digests.T)]
    return min(1, len(ordered)) + int((ordered[1:] != ordered[:-1]).any(axis=1).sum())


def _id_sets(run: RecordedRun, ids: Sequence[str] | None) -> list[str]:
    """Return the names of the sets that give the threshold."""
    if ids is None:
        names = [name for name, entry in run.sets.items() if entry.role == "id"]
    else:
        names = list(dict.fromkeys(ids))
    if not names:
        add = extract_command(run, "--id", "NAME=PATH")
        raise NotRecorded(f"Expected a set of ID images to calibrate from; add one with {add}.")
    for name in names:
        if name not in run.sets:
            raise InvalidArgument(f"Unknown set {name!r}; the run holds: {listed(run.sets)}.")
        if run.sets[name].role not in ("id", None):
            raise InvalidArgument(
                f"Expected ID images to calibrate from, got the set {name!r} with the role "
                f"{run.sets[name].role}."
            )
        run.require_complete(name)
    return names


def _halves(run: RecordedRun, names: Sequence[str], chose: Mapping[str, Mask]) -> Images:
    """Return the halves of some sets; of a set that chose, what did and what did not."""
    parts = {name: split(run, name, 2) for name in names}
    parts |= {name: [mask, *split(run, name, 1, mask)] for name, mask in chose.items()}
    fit, calibration = (
        _not_empty([Chosen(name, both[side]) for name, both in parts.items()]) for side in (0, 1)
    )
    count = _count(fit)
    _check_enough(run, count)
    notice = (
        f"no set to fit to: the score learns from {count:,} ID images drawn by a fixed seed, the "
        f"other {_count(calibration):,} give the threshold"
    )
    return Images(calibration, fit, notice=notice)


def _crossed(
    run: RecordedRun, names: Sequence[str], whole: Sequence[Chosen], chose: Mapping[str, Mask]
) -> Images:
    """Return the images of a cross-fit; those that chose the score only teach it."""
    masks = {name: split(run, name, FOLDS, chose.get(name)) for name in names}
    # Small sets fill the first parts alone: each set begins with another fold.
    folds = [
        _not_empty(
            Chosen(name, parts[(fold - place) % FOLDS])
            for place, (name, parts) in enumerate(masks.items())
        )
        for fold in range(FOLDS)
    ]
    taught = _not_empty(Chosen(name, mask) for name, mask in chose.items())
    if any(not fold for fold in folds):
        _check_enough(run, 0)
    _check_enough(run, _count(taught) + sum(map(_count, folds)) - max(map(_count, folds)))
    others = [
        [*taught, *chain.from_iterable(folds[:place] + folds[place + 1 :])]
        for place in range(FOLDS)
    ]
    notice = (
        "cross-fit: each tenth of the images is scored by what the others taught, and new images "
        "by what all taught; the promise is approximate"
    )
    everything = [Chosen(name) for name in names]
    return Images(whole, everything, list(zip(others, folds, strict=True)), notice)


def _check_enough(run: RecordedRun, count: int) -> None:
    if count < FEWEST:
        add = extract_command(run, "--fit-set", "NAME=PATH")
        raise NotRecorded(
            f"Expected at least {FEWEST} images to learn from, got {count}; add a set with {add}."
        )


def _not_empty(chosen: Iterable[Chosen]) -> list[Chosen]:
    return [one for one in chosen if one.mask is None or one.mask.any()]


def _count(chosen: Sequence[Chosen]) -> int:
    return sum(int(one.mask.sum()) for one in chosen if one.mask is not None)
