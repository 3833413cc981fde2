"""``run check`` and the readers give one verdict on every file of a run, however it is damaged."""

import os
import shutil
from itertools import product

import pytest
from helpers.recorded_run import drawn_set, make_run

from gradscore.choosing import choose
from gradscore.errors import NotRecorded, RunError
from gradscore.recorded import Run
from gradscore.run import RunStore, SetInfo, check
from gradscore.run.names import CHOICE_FILE, JOURNAL_FILE, RUN_FILE

FILES = (
    RUN_FILE,
    JOURNAL_FILE,
    "head.safetensors",
    CHOICE_FILE,
    "fits/*.safetensors",
    "digits/base/shard-00001.h5",
    "later/base/shard-00001.h5",
    "noise/norms-*/shard-00000.h5",
)
"""Patterns of one file each."""


def flipped(place):
    def change(path):
        content = bytearray(path.read_bytes())
        content[int(place * (len(content) - 1))] ^= 4
        path.write_bytes(content)

    return change


def replaced(make):
    def change(path):
        path.unlink()
        make(path)

    return change


DAMAGE = {
    **{f"flip at {place}": flipped(place) for place in (0, 0.3, 0.6, 0.9)},
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" \n"),
    "other bytes": lambda path: path.write_bytes(b"\xff{}\n" * 99),
    "deleted": os.unlink,
    "a folder": replaced(os.mkdir),
    "a pipe": replaced(os.mkfifo),
    "a link": replaced(lambda path: path.symlink_to("/etc/passwd")),
}


def read_all(run):
    """Read every file of a run by the ways that commands use."""
    store = RunStore(run)
    arrays = [store.head(), *map(store.read_fit, store.info.fits)]
    found = [{name: x.tolist() for name, x in one.items()} for one in arrays if one]
    for name, entry in store.sets.items():
        norms = [one for one in entry.passes if one != "base"]
        blocks = store.blocks(name, norms=norms)
        found += [value.tolist() for block in blocks for value in block.values()]
    return found, store.read_choice()


def verdict(run):
    """Return what refused a run, or what it holds."""
    try:
        return None, read_all(run)
    except RunError as error:
        return error, None


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Return a run with every kind of file, as a killed writer leaves it, and what it holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradscore.choosing.tables.FEWEST_IMAGES", 3)
        run = make_run(tmp_path_factory.mktemp("sound") / "run")
        choose(run)
        Run(run).score("digits", "vim", fit="train")
    store = RunStore.open_for_writing(run)
    store.add_set(SetInfo("later", "ood", "x", "0" * 64, 60))
    rows = drawn_set("train")
    for start in (0, 20, 40):
        shard = {name: values[start : start + 20] for name, values in rows.items()}
        store.add_shards("later", {"base": shard}, (start, start + 20))
    store._journal = None  # nothing is folded
    store.close()
    return run, read_all(run)


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [pair for pair in product(FILES, DAMAGE) if pair != (RUN_FILE, "deleted")],
)
def test_what_is_refused_is_reported_and_what_is_sound_is_read(sound, tmp_path, pattern, damage):
    run, expected = shutil.copytree(sound[0], tmp_path / "run"), sound[1]
    file = sorted(run.glob(pattern))[0].relative_to(run)
    DAMAGE[damage](run / file)
    problems, (error, found) = check(run), verdict(run)
    if pattern.startswith("fits/*") and damage == "deleted":  # it is learned again by who needs it
        assert [problem.reason for problem in problems] == ["is missing"]
        assert error is None
    elif isinstance(error, NotRecorded):  # what a journal lost is recorded again: nothing is wrong
        assert (pattern, problems) == (JOURNAL_FILE, [])
    elif error:
        (problem,) = problems
        assert problem.file == str(file)
        assert problem.reason in str(error)
    else:
        assert problems == []
        assert found == expected or damage == "deleted"
