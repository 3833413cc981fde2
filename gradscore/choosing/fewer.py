"""Large sets are asked in part: images drawn by a fixed seed.

A choice among scores rests on differences that fifty thousand images settle: an AUROC of as many
ID and OOD images has a standard error of at most 0.002. To resample ten million takes hours.
"""

from collections.abc import Iterable

import numpy as np

from gradscore.methods import RecordedRun
from gradscore.methods.part_of_run import Chosen, Mask, PartOfRun
from gradscore.methods.rows import drawn_places

MOST_IMAGES = 50_000
"""Images of a set that are asked, at most, beside those that must be."""


def at_most(mask: Mask, always: Iterable[int] = ()) -> Mask:
    """Return :data:`MOST_IMAGES` of the images of a mask, drawn by a fixed seed.

    Args:
        mask: Which images there are, shape ``[images]``.
        always: Places of those among them that are asked in any case.
    """
    places = np.flatnonzero(mask)
    if len(places) <= MOST_IMAGES:
        return mask
    few = np.zeros_like(mask)
    few[places[drawn_places(len(places), MOST_IMAGES)]] = True
    few[list(always)] = True
    return few


def fewer(run: RecordedRun, names: Iterable[str]) -> RecordedRun:
    """Return a run of which large sets are asked in part; the run itself where none is large.

    Args:
        run: The run.
        names: Sets that are asked in part where they are large.
    """
    large = {name for name in names if run.sets[name].recorded() > MOST_IMAGES}
    if not large:
        return run
    sets = {}
    for name, entry in run.sets.items():
        mask = None
        if name in large:
            mask = np.ones(entry.rows, bool)
            mask[[row.index for row in entry.failed]] = False
            mask = at_most(mask)
        sets[name] = (entry.role, [Chosen(name, mask)])
    return PartOfRun(run, sets, keep=True)
