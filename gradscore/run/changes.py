"""What is taken off a run: a set with all that rests on it, or what was deleted from the disk."""

from collections.abc import Mapping

from numpy.typing import NDArray

from gradscore.errors import RunError
from gradscore.run.contents import fit_file
from gradscore.run.hints import repair_hint
from gradscore.run.layout import BASE
from gradscore.run.names import CHOICE_FILE, HEAD_FILE
from gradscore.run.shard import ShardReader
from gradscore.run.store import RunStore


def remove_set(store: RunStore, name: str) -> list[str]:
    """Forget a set, its surrogates, what was learned from it, and what rests on that.

    Their files are deleted last: killed in between, files are left that nothing names.

    Args:
        store: The run, open for writing.
        name: The set.

    Returns:
        The fits and passes of other sets that went with it.

    Raises:
        RunError: If there is no such set, or the run was not opened for writing.
    """
    writer, info = store.writer, store.info
    if name not in info.sets:
        known = ", ".join(info.sets) or "no sets"
        raise RunError(f"Expected a set of the run {store.path} ({known}), got {name!r}.")
    names = {name, *(key for key in info.sets if key.startswith(f"{name}~"))}
    fits = [key for key, fit in info.fits.items() if names & fit.sets.keys()]
    resting = {key for key, entry in info.passes.items() if entry.details.get("fit") in fits}
    files = [fit_file(key) for key in fits]
    files += [CHOICE_FILE] if info.sets[name].role != "ood" else []
    for entry in info.sets.values():
        gone = entry.passes.keys() if entry.name in names else entry.passes.keys() & resting
        files += [shard.file for key in sorted(gone) for shard in entry.passes[key]]
        entry.passes = {key: entry.passes[key] for key in entry.passes if key not in gone}
    info.sets = {key: entry for key, entry in info.sets.items() if key not in names}
    info.fits = {key: fit for key, fit in info.fits.items() if key not in fits}
    held = {key for entry in info.sets.values() for key in entry.passes}
    info.passes = {key: entry for key, entry in info.passes.items() if key in held}
    store.save()
    for file in files:
        writer.delete(file)
    return [*fits, *sorted(resting)]


def repair(store: RunStore, head: Mapping[str, NDArray]) -> None:
    """Take what was deleted from the run for not recorded, so that it is recorded again.

    A pass grows from the first image on: with a shard all that are behind it are forgotten.
    Part of ``run.json`` from now on.

    Args:
        store: The run, open for writing.
        head: The last layer's weights, written again if their file is gone.

    Raises:
        RunError: If the rows that are left are not those of the set's images.
    """
    changed = False
    if head and not store.is_there(HEAD_FILE):
        store.info.head.sha256 = store.writer.write_arrays(HEAD_FILE, head)
        changed = True
    for entry in store.info.sets.values():
        # The rows say where to go on, before any of them is read.
        with repair_hint(store.path, store.info):
            for name in entry.passes:
                reader = ShardReader(store.path, store.info, entry, name)
                for fault in reader.range_faults(exactly=False):
                    raise fault
        for name, shards in entry.passes.items():
            gone = [place for place, s in enumerate(shards) if not store.is_there(s.file)]
            if not gone:
                continue
            changed = True
            if name == BASE:
                start = shards[gone[0]].start
                entry.failed = [row for row in entry.failed if row.index < start]
            del shards[gone[0] :]
    if changed:
        store.save()
