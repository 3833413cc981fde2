"""The half of a run's ID images that chooses a score, and the half that is kept for its threshold.

A threshold keeps its promise only on images that neither chose nor taught its score. So each ID
set is halved by a fixed seed where a threshold is wanted: one half chooses, and teaches where
there is no set to fit to; the other half is not looked at before it gives the threshold. Where
none is wanted, all images choose.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gradscore.choosing.choice import ChosenBy
from gradscore.choosing.fewer import at_most, fewer
from gradscore.choosing.holdout import FEWEST_IMAGES
from gradscore.data.surrogates import OF_TWO
from gradscore.errors import NotRecorded
from gradscore.escapes import listed
from gradscore.methods import RecordedRun, ScoreSpec
from gradscore.methods.part_of_run import Chosen, Mask, PartOfRun
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


def choosing_part(
    run: RecordedRun,
    names: Sequence[str],
    surrogates: Sequence[str],
    notes: list[str],
    *,
    half: bool,
) -> RecordedRun:
    """Return a run as a choice reads it, of each ID set all images or one half.

    Of many images only some choose, those that surrogates were made of among them.

    Args:
        run: The run.
        names: The ID sets whose images choose.
        surrogates: Names of their sets of surrogates.
        notes: Takes which surrogates are left out.
        half: Whether one half of each ID set chooses. Surrogates that were made of images of the
            other half are then left out, and sets of which nothing is left.

    Raises:
        NotRecorded: If a set is unfinished.
    """
    for name in names:
        run.require_complete(name)
    if not half and fewer(run, names) is run:
        return run
    masks = {
        name: split(run, name, 2 if half else 1)[0]
        for name, entry in run.sets.items()
        if entry.role == "id"
    }
    changed = {name: _made_of(run, name, masks) for name in surrogates}
    sets: dict[str, tuple[str | None, list[Chosen]]] = {}
    for name, entry in run.sets.items():
        if name in masks:
            made = [places for other, (_, places) in changed.items() if _original(other) == name]
            sets[name] = ("id", [Chosen(name, at_most(masks[name], set().union(*made)))])
        elif entry.role in ("fit", None):
            sets[name] = (entry.role, [Chosen(name)])
    for name, (mask, _) in changed.items():
        if mask.any():
            sets[name] = (SURROGATE, [Chosen(name, mask)])
        else:
            notes.append(
                f"Surrogate {name} was left out: it holds no image of the half that chose."
            )
    return PartOfRun(run, sets, keep=True)


def who_chose(run: RecordedRun, part: RecordedRun, names: Sequence[str], *, half: bool) -> str:
    """Return which images choose, and what that means for a threshold, as sentences.

    Args:
        run: The run.
        part: What the choice reads of it.
        names: The ID sets whose images choose.
        half: Whether one half of each ID set chooses.

    Raises:
        NotRecorded: If too few images choose.
    """
    count, of = (sum(one.sets[name].recorded() for name in names) for one in (part, run))
    if count < FEWEST_IMAGES:
        kept = (
            f", half of {listed(names)}: the other half is kept for the threshold" if half else ""
        )
        raise NotRecorded(
            f"Expected at least {FEWEST_IMAGES} ID images to choose by, got {count}{kept}."
        )
    some = f"all {of:,}" if count == of else f"{count:,} of the {of:,}"
    chose = f"Chosen by {some} images of {listed(names)}"
    if half:
        return f"{chose}, drawn by a fixed seed. The others have no part in it."
    return (
        f"{chose}. Images that chose a score give no threshold for it: there one half of them "
        "chooses anew, and the other half gives the threshold."
    )


def describe_choosers(
    run: RecordedRun, part: RecordedRun, names: Sequence[str], specs: Iterable[ScoreSpec]
) -> Iterator[ChosenBy]:
    """Yield the images that a choice was made by, and that can therefore give no threshold.

    Args:
        run: The run.
        part: What the choice read of it.
        names: The ID sets whose images chose.
        specs: The scores that were compared; some learned from further sets.
    """
    plans = [spec.definition.plan(spec, part) for spec in specs]
    read = {*names, *(name for plan in plans for name in plan.learned_from)}
    for name, entry in run.sets.items():
        if name in read and entry.role != "fit":
            images = part.sets[name].recorded()
            yield ChosenBy(name, images, entry.recorded())


def images_that_chose(run: RecordedRun, one: ChosenBy) -> Mask:
    """Return which images of a set chose or could have: all, or those of the half that chooses."""
    return split(run, one.name, 2 if one.images < one.of else 1)[0]


def _original(surrogate: str) -> str:
    return surrogate.partition("~")[0]


def _made_of(run: RecordedRun, name: str, masks: Mapping[str, Mask]) -> tuple[Mask, set[int]]:
    """Return which surrogates of a set were made of images that choose alone.

    Also the places of the images among these that surrogates were made of.
    """
    made_from, _, kind = name.partition("~")
    paths = _paths(run, name)
    half = masks[made_from]
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
