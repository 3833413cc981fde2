"""The sets of an extraction and those of the run: added where new, compared where known."""

from collections.abc import Mapping

from gradscore.data import ImageSet
from gradscore.errors import DataError, RunError
from gradscore.extraction.settings import Sets
from gradscore.run import BASE, FailedRow, RunStore, SetInfo, remove_command
from gradscore.run.identity import OF_SET, require_equal, require_same
from gradscore.run.names import SURROGATE
from gradscore.run.reader import RunReader


def agree_on_sets(
    store: RunStore, sets: Sets, opened: Mapping[str, ImageSet]
) -> tuple[dict[str, ImageSet], list[str]]:
    """Add the sets to the run, or check them against those that are there.

    Sets whose images have changed are left out, unless none would be left.

    Returns:
        The images by set name, and what was wrong with those left out.

    Raises:
        RunError: If a set has another role.
        DataError: If the images of every set have changed.
    """
    agreed, faults = {}, []
    for name, images in opened.items():
        try:
            role = SURROGATE if "~" in name else sets[name][0]
            agree_on_set(store, name, role, images)
        except DataError as error:
            faults.append(str(error))  # which names the set
        else:
            agreed[name] = images
    if not agreed:
        raise DataError(" ".join(faults))
    return agreed, [f"Left out: {fault}" for fault in faults]


def agree_on_set(store: RunStore, name: str, role: str | None, images: ImageSet) -> None:
    """Add a set to the run, or check it against the one that is there.

    More images are taken on where the run's are the first of them, as under a larger limit.

    Raises:
        RunError: If the set there has another role.
        DataError: If its images are not the first of these.
    """
    known, part = store.sets.get(name), store.info.part
    if store.whole is not None and name in store.whole.sets:
        _agree_with_whole(store.whole, name, role, images)
    if known is None:
        entry = SetInfo(name, role, images.source, images.sha256, len(images), images.notice)
        if part is not None:
            entry.span = part.span(len(images))
            held = store.holder_of(name, BASE).sets.get(name)
            entry.failed = [row for row in held.failed if _within(row, entry)] if held else []
        store.add_set(entry)
        return
    require_equal(f"Set {name} of the run", "role", known.role, role)
    if known.manifest_sha256 == images.sha256:
        return
    more = len(images) - known.rows
    if more > 0 and part is None and images.beginning_sha256(known.rows) == known.manifest_sha256:
        known.rows, known.manifest_sha256, known.notice = len(images), images.sha256, images.notice
        return
    if part is not None:
        raise RunError(
            f"Set {name} of {store.path} was begun as part {part} of {known.rows:,} images, got "
            f"{len(images):,} or others; give the same to every part, or delete that directory."
        )
    remove = remove_command(store.path, name)
    if more < 0 and images.source == known.source:
        raise DataError(
            f"Set {name} of the run {store.path} has {known.rows:,} images, got {len(images):,}; "
            f"give `limit={known.rows}` or more, or forget the set with {remove}."
        )
    raise DataError(
        f"The images of set {name} have changed since they were recorded: {known.rows:,} of "
        f"{known.source} then, {len(images):,} of {images.source} now; bring them back, or forget "
        f"the set with {remove} and record it anew."
    )


def _agree_with_whole(whole: RunReader, name: str, role: str | None, images: ImageSet) -> None:
    """Raise unless a set of a part is the set that the whole run holds."""
    require_same(
        f"Set {name} of the run {whole.path}",
        OF_SET,
        whole.sets[name],
        SetInfo(name, role, images.source, images.sha256, len(images)),
        "parts add passes to the same images; extend or replace a set without `part`",
    )


def _within(row: FailedRow, entry: SetInfo) -> bool:
    return entry.start <= row.index < entry.stop
