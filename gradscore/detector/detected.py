"""A run as a detector judges it: by what the detector learned, on images that it did not learn of.

Its threshold holds for those scores alone. A run that taught the same method again would give
others.
"""

import os
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from gradscore.detector.about import head_digest
from gradscore.detector.file import FIT, DetectorInfo, Source
from gradscore.detector.images import FIT_SET
from gradscore.errors import DetectorError
from gradscore.methods.memory_run import set_entry
from gradscore.methods.part_of_run import Chosen, PartOfRun
from gradscore.run import RunStore, SetInfo
from gradscore.run.hints import command
from gradscore.run.layout import BLOCKS
from gradscore.selection import select


def run_for(
    store: RunStore, info: DetectorInfo, arrays: Mapping[str, NDArray], path: str | os.PathLike
) -> PartOfRun:
    """Return the run with what a detector learned, without the images that it learned from.

    Args:
        store: The run.
        info: What the detector's file says.
        arrays: The file's arrays.
        path: The file.

    Raises:
        DetectorError: If it is of another model, or of that in another configuration.
    """
    for what, ours, its in _compared(store, info):
        if ours != its:
            raise DetectorError(
                f"Expected a detector of the run's model, got {os.fspath(path)!r} of another: "
                f"{what} {its} there, {ours} in the run {store.path}; calibrate one with "
                f"{command('calibrate', store.path)}."
            )
    sets = {name: (entry.role, [_unseen(entry, info)]) for name, entry in store.sets.items()}
    learned = {name.removeprefix(FIT): x for name, x in arrays.items() if name.startswith(FIT)}
    part = PartOfRun(store, sets, learned or None)
    if learned:
        images = sum(source.images for source in info.fit)
        part.info.sets[FIT_SET] = set_entry(FIT_SET, "fit", images)
    return part


def seen_images(store: RunStore, info: DetectorInfo) -> Iterator[str]:
    """Yield which images of a run its detector knows already."""
    for source in info.calibration:
        if _is_of(store.sets.get(source.name), source):
            yield (
                f"The detector's threshold was computed from {source.images:,} images of "
                f"{source.name}. That most of these are kept is therefore not a test of it."
            )
    for source in info.fit:
        entry = store.sets.get(source.name)
        if not _is_of(entry, source):
            continue
        shown = _unseen(entry, info).mask is None
        end = "how many are kept is not a test of it" if shown else "these are left out"
        yield f"Its score learned from {source.images:,} images of {source.name}: {end}."


def _compared(store: RunStore, info: DetectorInfo) -> Iterator[tuple[str, object, object]]:
    """Yield what must be equal: its name, as it is in the run, and as the detector has it."""
    about = store.info
    yield "weights of SHA-256", about.weights_sha256, info.weights_sha256
    yield "precision", about.precision, info.precision
    yield "preprocessing", about.preprocessing, info.preprocessing
    if info.head_sha256:
        head = head_digest(store.head()) if about.head.closed_form else "none"
        yield "last layer of SHA-256", head, info.head_sha256
    if info.parameters:
        layers = info.settings["layers"]
        known = layers in about.groups or layers in about.parameters
        ours = select(tuple(about.parameters), about.groups, layers) if known else ()
        yield f"parameters of {layers}", tuple(ours), tuple(info.parameters)
    if info.stages:
        there = about.passes[BLOCKS].details["modules"] if BLOCKS in about.passes else {}
        ours = {stage: there[stage] for stage in info.stages if stage in there}
        yield "stages", ours, dict(info.stages)


def _unseen(entry: SetInfo, info: DetectorInfo) -> Chosen:
    """Return the images of a set that a detector's score did not learn from; if none, all."""
    mask = np.ones(entry.rows, bool)
    for source in info.fit:
        if _is_of(entry, source) and source.rows and max(source.rows) < entry.rows:
            mask[list(source.rows)] = False
    there = mask.copy()
    there[[row.index for row in entry.failed]] = False
    return Chosen(entry.name, None if mask.all() or not there.any() else mask)


def _is_of(entry: SetInfo | None, source: Source) -> bool:
    """Say whether images were taken of a set as it is recorded now."""
    return (
        entry is not None
        and entry.name == source.name
        and entry.manifest_sha256 == source.manifest_sha256
    )
