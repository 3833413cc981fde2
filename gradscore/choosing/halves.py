"""The half of a run's ID images that chooses a score, and the half that is kept for its threshold.

A threshold keeps its promise only on images that neither chose nor taught its score. So each ID
set is halved by a fixed seed: one half chooses, and teaches where there is no set to fit to; the
other half is never looked at before it gives the threshold.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gradscore.choosing.fewer import at_most
from gradscore.choosing.holdout import FEWEST_IMAGES
from gradscore.data.surrogates import OF_TWO
from gradscore.errors import NotRecorded
from gradscore.escapes import listed
from gradscore.methods import RecordedRun, ScoreSpec
from gradscore.methods.part_of_run import Chosen, Mask, PartOfRun
from gradscore.run import ChosenBy
from gradscore.run.hints import command
from gradscore.run.names import SURROGATE

SEED = 0


def split(run: RecordedRun, name: str, parts: int, without: Mask | None = None) -> list[Mask]:
    """Return the images of a set in parts of nearly one size, drawn by a fixed seed.

    The parts depend on the set alone. Images that could not be read are in none.

    Args:
        run: The run.
        name: Name of the set.
        parts: How many.
        without: Which of its images are in no part; by default none.

    Returns:
        One mask of the set's images a part; the first ones may have an image more.
    """
    entry = run.sets[name]
    there = np.ones(entry.rows, dtype=bool)
    there[[row.index for row in entry.failed]] = False
    if without is not None:
        there &= ~without
    places = np.flatnonzero(there)
    turn = np.empty(len(places), dtype=np.int64)
    turn[np.random.default_rng(SEED).permutation(len(places))] = np.arange(len(places)) % parts
    masks = []
    for part in range(parts):
        mask = np.zeros(entry.rows, dtype=bool)
        mask[places[turn == part]] = True
        masks.append(mask)
    return masks


def halves(run: RecordedRun, names: Iterable[str]) -> tuple[list[Chosen], list[Chosen]]:
    """Return the half of some sets that chooses and teaches, and the one that gives a threshold.

    Sets of which a half holds no image are left out of it.
    """
    masks = {name: split(run, name, 2) for name in names}
    first, second = (
        [Chosen(name, both[side]) for name, both in masks.items() if both[side].any()]
        for side in (0, 1)
    )
    return first, second


def choosing_half(
    run: RecordedRun, names: Sequence[str], surrogates: Sequence[str], notes: list[str]
) -> PartOfRun:
    """Return a run as a choice reads it: without OOD sets, and of each ID set one half.

    Of a large half only some images choose, those that surrogates were made of among them.

    Args:
        run: The run.
        names: The ID sets whose images choose.
        surrogates: Names of their sets of surrogates. Images that were made of the other half
            are left out, and sets of which nothing is left.
        notes: Takes which images choose, and which surrogates are left out.

    Raises:
        NotRecorded: If a set is unfinished, or too few images choose.
    """
    for name in names:
        run.require_complete(name)
    changed = {name: _made_of_half(run, name) for name in surrogates}
    sets: dict[str, tuple[str | None, list[Chosen]]] = {}
    for name, entry in run.sets.items():
        if entry.role == "id":
            made = [places for other, (_, places) in changed.items() if _original(other) == name]
            mask = at_most(split(run, name, 2)[0], set().union(*made))
            sets[name] = ("id", [Chosen(name, mask)])
        elif entry.role in ("fit", None):
            sets[name] = (entry.role, [Chosen(name)])
    for name, (mask, _) in changed.items():
        if mask.any():
            sets[name] = (SURROGATE, [Chosen(name, mask)])
        else:
            notes.append(
                f"Surrogate {name} was left out: it holds no image of the half that chose."
            )
    half = PartOfRun(run, sets)
    count, of = (sum(one.sets[name].recorded() for name in names) for one in (half, run))
    if count < FEWEST_IMAGES:
        raise NotRecorded(
            f"Expected at least {FEWEST_IMAGES} ID images to choose by, got {count}, half of "
            f"{listed(names)}: the other half is kept for the threshold."
        )
    notes.insert(
        0,
        f"Chosen by {count:,} of the {of:,} images of {listed(names)}, drawn by a fixed seed. The "
        "others have no part in it, so that they may give the threshold.",
    )
    return half


def describe_choosers(
    run: RecordedRun, half: RecordedRun, names: Sequence[str], specs: Iterable[ScoreSpec]
) -> Iterator[ChosenBy]:
    """Yield the images that a choice was made by, and that can therefore give no threshold.

    Args:
        run: The run.
        half: What the choice read of it.
        names: The ID sets whose images chose.
        specs: The scores that were compared; some learned from further sets.
    """
    plans = [spec.definition.plan(spec, half) for spec in specs]
    read = {*names, *(name for plan in plans for name in plan.learned_from)}
    for name, entry in run.sets.items():
        if name in read and entry.role != "fit":
            images = half.sets[name].recorded()
            yield ChosenBy(name, images, entry.recorded(), entry.manifest_sha256)


def images_that_chose(run: RecordedRun, one: ChosenBy) -> Mask:
    """Return which images of a set chose, as :func:`describe_choosers` described them.

    Raises:
        NotRecorded: If the set has changed since.
    """
    entry = run.sets[one.name]
    if (entry.manifest_sha256, entry.recorded()) != (one.manifest_sha256, one.of):
        raise NotRecorded(
            f"The set {one.name!r} has changed since its images chose the score; choose again "
            f"with {command('choose', run.path)}."
        )
    first, second = split(run, one.name, 2)
    return first if one.images < one.of else first | second


def _original(surrogate: str) -> str:
    return surrogate.partition("~")[0]


def _made_of_half(run: RecordedRun, name: str) -> tuple[Mask, set[int]]:
    """Return which surrogates of a set were made of images of the half that chooses alone.

    Also the places of the images of that half that surrogates were made of.
    """
    made_from, _, kind = name.partition("~")
    paths = _paths(run, name)
    half = split(run, made_from, 2)[0]
    wanted, first, second, places = set(paths.tolist()), set(), set(), set()
    for arrays in run.blocks(made_from, ("index", "path")):
        for place, path in zip(arrays["index"].tolist(), arrays["path"].tolist(), strict=True):
            if path in wanted:
                (first if half[place] else second).add(path)
                places.update([place] if half[place] else [])
    # An image that is listed twice may be in both halves.
    mask = np.array([path in first and path not in second for path in paths], dtype=bool)
    return mask & np.roll(mask, -1) if kind in OF_TWO else mask, places


def _paths(run: RecordedRun, name: str) -> NDArray:
    """Return where each image of a set came from; an empty text where it could not be read."""
    paths = np.full(run.sets[name].rows, "", dtype=object)
    for arrays in run.blocks(name, ("index", "path")):
        paths[arrays["index"]] = arrays["path"]
    return paths
