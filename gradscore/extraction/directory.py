"""The directory that an extraction writes: that of a run, or of one of its parts."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from numpy.typing import NDArray

from gradscore.choices import AUTO
from gradscore.errors import RunError
from gradscore.extraction.resolved import Resolved
from gradscore.extraction.settings import Settings
from gradscore.run import RunStore
from gradscore.run.changes import repair
from gradscore.run.hints import merge_command
from gradscore.run.identity import IDENTITY, OF_SET, require_same
from gradscore.run.layout import PartInfo, RunInfo, SetInfo
from gradscore.run.lock import RunInUse
from gradscore.run.names import PARTS, RUN_FILE, SURROGATE
from gradscore.run.parts import PartFolder, in_parts, next_attempt, part_folders
from gradscore.run.reader import RunReader

SAME_SETS = "give the same images to every part, or choose another run"
PART_UNIT = 64
"""Images at whose multiples parts are cut where the batch size is found by trying."""


def open_run(settings: Settings, resolved: Resolved) -> RunStore:
    """Make a run or a part of one, or open what is there if it agrees; the lock is held.

    What was deleted from the run that is there, for being damaged, is recorded again. Groups must
    agree only where the user gave some.

    Raises:
        RunError: If the run there differs in a field (both values are named), is damaged, is
            being written, is recorded in other parts, or cannot be written.
    """
    if settings.part is not None:
        return _open_part(settings, resolved)
    if in_parts(settings.run):
        raise RunError(
            f"The run {settings.run} is recorded in parts; join them with "
            f"{merge_command(settings.run)}, or record one with `part='I/N'`."
        )
    return _open(settings.run, resolved.info, resolved.head, _compared(settings))


def _compared(settings: Settings) -> Sequence[str]:
    return (*IDENTITY, *(("groups",) if settings.blocks else ()))


def _open(
    path: Path, info: RunInfo, head: Mapping[str, NDArray], compared: Sequence[str]
) -> RunStore:
    if not os.path.lexists(path / RUN_FILE):
        return RunStore.create(path, info, head)
    store = RunStore.open_for_writing(path)
    try:
        require_same(f"The run {path}", compared, store.info, info)
        repair(store, head)
    except BaseException:
        store.close()
        raise
    return store


def _open_part(settings: Settings, resolved: Resolved) -> RunStore:
    """Open a directory of the part that no other process writes."""
    run, info = settings.run, resolved.info
    unit = PART_UNIT if settings.batch_size == AUTO else settings.batch_size
    part = PartInfo(*settings.part, unit)
    whole = None
    if os.path.lexists(run / RUN_FILE):
        whole = RunReader(run)
        require_same(f"The run {run}", _compared(settings), whole.info, info)
    others = part_folders(run)
    _agree_with_others(settings, resolved, part, others)
    mine = [folder for folder in others if folder.number == part.number]
    # The one that has come furthest: where one is complete, nothing is left to do.
    mine.sort(key=_recorded, reverse=True)
    info, compared = replace(info, part=part), (*_compared(settings), "part")
    while True:
        for folder in mine:
            try:
                store = _open(folder.path, info, resolved.head, compared)
            except RunInUse:
                continue
            store.whole = whole
            return store
        mine = [next_attempt(run, part, mine)]


def _agree_with_others(
    settings: Settings, resolved: Resolved, part: PartInfo, others: Sequence[PartFolder]
) -> None:
    """Raise unless a run's other parts are of the same model and sets, and cut as this one is.

    Raises:
        RunError: Naming the field and both values, or how the others are cut.
    """
    run = settings.run
    if others and others[0].count != part.count:
        raise RunError(
            f"The run {run} is recorded in {others[0].count} parts, got part {part}; give "
            f"`part='I/{others[0].count}'`, or delete {run}/{PARTS} to begin anew."
        )
    for folder in others:
        reader = folder.read()
        if reader is not None:
            unit = reader.info.part.unit
            if unit != part.unit:
                raise RunError(
                    f"The parts of the run {run} are cut at multiples of {unit} images, got a "
                    f"batch size of {part.unit}; give `batch_size={unit}` with every part."
                )
            what = f"Part {reader.info.part} of the run {run}"
            require_same(what, _compared(settings), reader.info, resolved.info)
            if folder.number != part.number:
                _agree_on_sets(what, settings, resolved, reader)
            return


def _agree_on_sets(what: str, settings: Settings, resolved: Resolved, other: RunReader) -> None:
    """Raise unless sets are those of another part, before images are asked for nothing."""
    for name, images in resolved.sets.items():
        if name in other.sets:
            role = SURROGATE if "~" in name else settings.sets[name][0]
            mine = SetInfo(name, role, images.source, images.sha256, len(images))
            require_same(f"{what}: set {name}", OF_SET, other.sets[name], mine, SAME_SETS)


def _recorded(folder: PartFolder) -> int:
    reader = folder.read()
    if reader is None:
        return 0
    spans = [
        entry.done(name) - entry.start for entry in reader.sets.values() for name in entry.passes
    ]
    return sum(spans)
