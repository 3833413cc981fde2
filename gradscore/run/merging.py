"""The parts of a run joined: compared field by field, and their files linked, not copied.

Whatever ends a merge, the parts stay until the joined run is written; the same command goes on.
"""

import contextlib
import copy
import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradscore.errors import RunError
from gradscore.run.contents import fit_file, shard_file
from gradscore.run.files import open_below
from gradscore.run.hints import extract_command, naming_options, pass_options
from gradscore.run.identity import IDENTITY, OF_PASS, OF_SET, require_equal
from gradscore.run.index import encode
from gradscore.run.layout import BASE, RunInfo, Shard
from gradscore.run.lock import RunInUse
from gradscore.run.names import HEAD_FILE, JOURNAL_FILE, PARTS, RUN_FILE
from gradscore.run.parts import PartFolder, part_folders
from gradscore.run.reader import read_info
from gradscore.run.shard import ShardReader
from gradscore.run.writer import Writer

SHOWN = 8
"""Parts that a message gives the command of."""
OF_HEAD = ("module", "weights", "bias", "closed_form", "sha256")
OF_FIT = ("method", "sets", "settings", "sha256")
DESCRIBED = (*IDENTITY, "parameters", "groups", "class_names")


class Part(NamedTuple):
    """One part of a run: its directory, and what it holds."""

    folder: PartFolder
    info: RunInfo


class Merged(NamedTuple):
    """What a merge did.

    Attributes:
        parts: Number of parts joined.
        sets: Names of the sets whose rows came.
        left: Directories of parts that were left, as a process still writes them.
    """

    parts: int
    sets: list[str]
    left: list[Path]


def merge(path: str | os.PathLike) -> Merged:
    """Join the parts of a run in its directory; no row is copied or changed.

    Args:
        path: The run's directory.

    Raises:
        RunError: If there are no parts, one is missing or unfinished (the commands that record
            them are named), two differ in a field, a file is gone, or the run is being written.
    """
    run = Path(path)
    folders = part_folders(run)
    if not folders:
        command = extract_command(run, "--part", "I/N", "...")
        raise RunError(f"No parts of a run in {run}; record them with {command}.")
    writer = Writer(run)
    try:
        whole = read_info(run) if os.path.lexists(run / RUN_FILE) else None
        parts = _chosen(run, folders, whole)
        joined, moves = _joined(parts, whole)
        _require_there(run, joined, moves)
        for source, target in moves.items():
            writer.link(source, target)
        writer.write(RUN_FILE, encode(joined))
        writer.delete(JOURNAL_FILE)
        named = {shard.file for shard in _shards(joined)}
        for shard in _shards(whole) if whole else ():
            if shard.file not in named:
                writer.delete(shard.file)
        left = [folder.path for folder in folders if not _cleared(folder)]
        if not left:
            with contextlib.suppress(OSError):  # what is not ours may lie in it
                os.rmdir(run / PARTS)
    finally:
        writer.release()
    return Merged(len(parts), list(joined.sets), left)


def _chosen(run: Path, folders: Sequence[PartFolder], whole: RunInfo | None) -> list[Part]:
    """Return a complete directory of every part, in their order.

    Raises:
        RunError: If parts are of different numbers or described differently, or one is not
            complete; the message holds the commands that record those.
    """
    read = ((folder, folder.read()) for folder in folders)
    there = [Part(folder, reader.info) for folder, reader in read if reader is not None]
    counts = sorted({folder.count for folder in folders})
    if len(counts) > 1:
        raise RunError(
            f"Expected parts of one number in {run}/{PARTS}, got those of "
            f"{' and of '.join(map(str, counts))}; delete those that are not meant."
        )
    (count,) = counts
    for part in there[1:]:
        _compare(there[0], part.info, f"{part.folder.path} has")
    if there and whole is not None:
        _compare(there[0], whole, f"the run {run} has")
    wanted = _recorded_passes([part.info for part in there])
    found: dict[int, Part] = {}
    for part in there:
        if part.folder.number not in found and _is_complete(part.info, wanted):
            found[part.folder.number] = part
    missing = [number for number in range(1, count + 1) if number not in found]
    if missing:
        raise RunError(_to_record(run, missing, count, there))
    return [found[number] for number in sorted(found)]


def _compare(first: Part, info: RunInfo, what: str) -> None:
    """Raise unless what a part says agrees with what another part or the whole run says.

    Raises:
        RunError: Naming the field and both values.
    """
    mine, advice = first.info, "delete the part that is not meant, and record it anew"

    def same(field: str, old: Any, new: Any) -> None:
        require_equal(f"Part {mine.part} of {first.folder.run}", field, old, new, advice, what)

    for field in DESCRIBED:
        same(field, getattr(mine, field), getattr(info, field))
    for field in OF_HEAD:
        same(f"head.{field}", getattr(mine.head, field), getattr(info.head, field))
    if info.part is not None:
        same("part.unit", mine.part.unit, info.part.unit)
    for kind, fields in (("passes", OF_PASS), ("sets", OF_SET), ("fits", OF_FIT)):
        here, there = getattr(mine, kind), getattr(info, kind)
        for name in here.keys() & there.keys():
            for field in fields:
                values = (getattr(side[name], field) for side in (here, there))
                same(f"{kind}.{name}.{field}", *values)


def _recorded_passes(infos: Sequence[RunInfo]) -> dict[str, list[str]]:
    """Return the passes that any part was asked of each set, ``base`` first where it is one."""
    found: dict[str, dict[str, None]] = {}
    for info in infos:
        for name, entry in info.sets.items():
            found.setdefault(name, {}).update(dict.fromkeys(entry.passes))
    return {name: sorted(passes, key=lambda one: one != BASE) for name, passes in found.items()}


def _is_complete(info: RunInfo, wanted: Mapping[str, Sequence[str]]) -> bool:
    return all(
        name in info.sets and all(info.sets[name].complete(one) for one in passes)
        for name, passes in wanted.items()
        if passes
    )


def _to_record(run: Path, missing: Sequence[int], count: int, there: Sequence[Part]) -> str:
    """Return which parts are missing or unfinished, and the commands that record them."""
    numbers = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
    verb = "is" if len(missing) == 1 else "are"
    commands = [
        command
        for number in missing[:SHOWN]
        for command in _commands(run, f"{number}/{count}", there)
    ]
    return (
        f"{len(missing)} of {count} parts of the run {run} {verb} missing or unfinished: "
        f"{numbers}; record them with {', '.join(commands)}."
    )


def _commands(run: Path, part: str, there: Sequence[Part]) -> list[str]:
    if not there:
        return [extract_command(run, "--part", part, "...")]
    info = there[0].info
    passes = dict.fromkeys(
        name for part in there for entry in part.info.sets.values() for name in entry.passes
    )
    of_passes = [pass_options(info, name) for name in passes if name in info.passes]
    named = naming_options(info)
    options = of_passes or [pass_options(info, BASE)]
    return list(
        dict.fromkeys(extract_command(run, "--part", part, *named, *how) for how in options)
    )


def _joined(parts: Sequence[Part], whole: RunInfo | None) -> tuple[RunInfo, dict[str, str]]:
    """Return what the joined run is about, and where each file of the parts goes.

    What the whole run holds completely stays; what it holds in part gives way to the parts.
    """
    first = parts[0].info
    joined = (
        copy.deepcopy(whole)
        if whole
        else dataclasses.replace(copy.deepcopy(first), part=None, sets={}, passes={}, fits={})
    )
    moves: dict[str, str] = {}
    if not whole and first.head.sha256 is not None:
        moves[f"{parts[0].folder.name}/{HEAD_FILE}"] = HEAD_FILE
    for part in parts:
        for name, entry in part.info.passes.items():
            known = joined.passes.setdefault(name, copy.deepcopy(entry))
            known.rules = known.rules or dict(entry.rules)
        for name, fit in part.info.fits.items():
            if name not in joined.fits:
                joined.fits[name] = copy.deepcopy(fit)
                moves[f"{part.folder.name}/{fit_file(name)}"] = fit_file(name)
    wanted = _recorded_passes([part.info for part in parts])
    for name, passes in wanted.items():
        if not passes and name in joined.sets:
            continue
        entries = [(part, part.info.sets[name]) for part in parts if name in part.info.sets]
        entry = joined.sets.get(name)
        if entry is None:
            about = copy.deepcopy(entries[0][1])
            entry = dataclasses.replace(about, span=None, failed=[], passes={})
            joined.sets[name] = entry
        for one in passes:
            if entry.complete(one):
                continue
            if one == BASE:
                entry.failed = [row for _, of_part in entries for row in of_part.failed]
            entry.passes[one] = []
            for part, of_part in entries:
                for shard in of_part.passes.get(one, ()):
                    file = shard_file(name, one, len(entry.passes[one]))
                    moves[f"{part.folder.name}/{shard.file}"] = file
                    entry.passes[one].append(dataclasses.replace(shard, file=file))
    return joined, moves


def _require_there(run: Path, joined: RunInfo, moves: Mapping[str, str]) -> None:
    """Raise unless the parts' rows cover each set, and their files are there, and no links.

    Raises:
        RunError: Naming the first range or file at fault.
    """
    for entry in joined.sets.values():
        for one in entry.passes:
            for fault in ShardReader(run, joined, entry, one).range_faults():
                raise RunError(f"{fault}; the parts do not fit together: delete {run}/{PARTS}.")
    for source, target in moves.items():
        if not os.path.lexists(run / source) and not os.path.lexists(run / target):
            part = source.split("/")[1]
            raise RunError(
                f"{run / source} is missing; record that part again: the command that recorded "
                f"it makes what is not there ({part.partition('.')[0].replace('-of-', '/')})."
            )
        if os.path.lexists(run / source):
            os.close(open_below(run, source))


def _shards(info: RunInfo) -> Iterator[Shard]:
    for entry in info.sets.values():
        for shards in entry.passes.values():
            yield from shards


def _cleared(folder: PartFolder) -> bool:
    """Delete a part's directory unless another process writes it; return whether it is gone."""
    try:
        writer = Writer(folder.path)
    except RunInUse:
        return False
    try:
        shutil.rmtree(folder.path)
    except OSError as error:
        raise RunError(
            f"Cannot delete {folder.path}: {error.strerror}; the run is joined without it."
        ) from None
    finally:
        writer.release()
    return True
