"""A run recorded in parts, in any order, twice or interrupted, is the run of one process."""

import errno
import os
import shlex
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from gradscore.cli import cli
from gradscore.errors import InvalidArgument, RunError
from gradscore.extraction.part import parse_part
from gradscore.recorded import extract
from gradscore.run import RunStore, check, merge
from gradscore.run.writer import Writer

SETS = {
    "digits": ("id", "digits:test"),
    "noise": ("ood", "digits:noise"),
    "train": ("fit", "digits:train"),
}
LIMITS = {"digits": 26, "noise": 13, "train": 12}
SMALL = {"limit": LIMITS, "batch_size": 8, "shard_rows": 8}
EVERY = {
    "layers": "block4",
    "keep": ("block4",),
    "record": ("odin", "mahalanobis", "surrogates"),
    "epsilon": 0.1,
    "fit": "train",
}


def record(run, **how):
    return extract("digits", SETS, run, **{**SMALL, "layers": "last", **how})


def rows(run):
    """Return every value of a run as bytes: set and dataset to its content."""
    store, found = RunStore(run), {}
    for name, entry in store.sets.items():
        passes = [one for one in entry.passes if one != "base"]
        blocks = list(store.blocks(name, norms=passes, rows=7))
        for field in blocks[0]:
            values = np.concatenate([block[field] for block in blocks])
            whole = values.tolist() if values.dtype == object else values.tobytes()
            found[name, field] = whole
    return found


def invoke(*command):
    return CliRunner().invoke(cli, [str(word) for word in command])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a run that one process recorded, with every kind of pass."""
    run = tmp_path_factory.mktemp("whole")
    record(run, **EVERY)
    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return the same without further passes."""
    run = tmp_path_factory.mktemp("base")
    record(run)
    return run


def inodes(folder):
    return {path.stat().st_ino for path in folder.rglob("*.h5")}


def test_merged_parts_are_the_run_of_one_process_byte_for_byte(whole, tmp_path):
    for number in (3, 1, 2, 1):
        run = record(tmp_path, part=(number, 3), **EVERY)
    assert run.path == tmp_path / ".parts" / "1-of-3"
    before = inodes(tmp_path)
    merged = merge(tmp_path)
    assert (merged.parts, merged.left) == (3, [])
    assert rows(tmp_path) == rows(whole)
    assert inodes(tmp_path) == before  # linked, not copied
    assert check(tmp_path) == []
    one, other = RunStore(whole).info, RunStore(tmp_path).info
    assert (other.passes, other.fits, other.part) == (one.passes, one.fits, None)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}
    record(tmp_path, **EVERY)  # nothing is left to do
    assert inodes(tmp_path) == before


def test_a_part_that_is_being_written_is_recorded_beside_it(base, tmp_path):
    record(tmp_path, part=(1, 2))
    first = tmp_path / ".parts" / "2-of-2"
    first.mkdir()
    writer = Writer(first)
    try:
        assert record(tmp_path, part="2/2").path.name == "2-of-2.1"
        assert merge(tmp_path).left == [first]
    finally:
        writer.release()
    assert rows(tmp_path) == rows(base)
    assert record(tmp_path, part="2/2").path.name == "2-of-2"  # whole: nothing is recorded
    assert inodes(first) == set()


def test_of_two_directories_of_a_part_the_complete_one_is_taken(base, tmp_path):
    record(tmp_path, part=(2, 2))
    begun = tmp_path / ".parts" / "1-of-2"
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path, part=(1, 2), progress=_Interrupt(7))
    writer = Writer(begun)
    record(tmp_path, part=(1, 2))
    writer.release()
    kept = inodes(tmp_path / ".parts" / "1-of-2.1")
    merge(tmp_path)
    assert rows(tmp_path) == rows(base)
    assert kept <= inodes(tmp_path)


class _Interrupt:
    """Raises after some images."""

    def __init__(self, left):
        self.left = left

    def start(self, total, description):
        pass

    def finish(self):
        pass

    def advance(self, n):
        self.left -= n
        if self.left < 0:
            raise KeyboardInterrupt


def test_missing_parts_are_named_with_the_commands_that_record_them(base, tmp_path):
    for number in (1, 3):
        record(tmp_path, part=(number, 4))
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path, part=(2, 4), progress=_Interrupt(7))
    result = invoke("run", "merge", tmp_path)
    assert result.exit_code == 1
    told = str(result.exception)
    assert told.startswith(f"2 of 4 parts of the run {tmp_path} are missing or unfinished: 2, 4;")
    assert not (tmp_path / "run.json").exists()
    commands = told.split("`")[1::2]
    assert len(commands) == 2
    for command in commands:
        words = shlex.split(command)[1:]
        result = invoke(*words, "--batch-size", 8, "--workers", 0)
        assert result.exit_code == 0, result.output
        assert f"Once all 4 parts are recorded, `gradscore run merge {tmp_path}`" in result.output
    result = invoke("run", "merge", tmp_path)
    assert f"{tmp_path}: 4 parts joined, 51 images in 3 sets." in result.output
    assert rows(tmp_path) == rows(base)


def test_parts_add_a_pass_to_a_run_that_is_there(base, tmp_path):
    record(tmp_path)
    for number in (1, 2):
        run = record(tmp_path, part=(number, 2), keep=("block4",))
    assert list(run.store.sets["digits"].passes) == ["keep-block4"]
    merge(tmp_path)
    found = rows(tmp_path)
    assert {key: found[key] for key in rows(base)} == rows(base)
    assert {field for _, field in found} >= {"keep-block4"}
    with pytest.raises(RunError, match=r"has rows 26, got 20; parts add passes to the same"):
        record(tmp_path, part=(1, 2), limit=LIMITS | {"digits": 20})


def test_what_one_process_began_gives_way_to_the_parts(base, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path, progress=_Interrupt(14))
    assert 0 < RunStore(tmp_path).sets["digits"].done("base") < 26
    for number in (1, 2, 3):
        record(tmp_path, part=(number, 3))
    merge(tmp_path)
    assert rows(tmp_path) == rows(base)
    assert check(tmp_path) == []


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "a disk without"])
def test_a_merge_that_is_killed_goes_on(base, tmp_path, monkeypatch, links):
    for number in (1, 2):
        record(tmp_path, part=(number, 2))
    left = [0]
    link = Writer.link

    def stops(writer, source, target):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        link(writer, source, target)

    def refuses(*how, **more):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Writer, "link", stops)
    if not links:
        monkeypatch.setattr(os, "link", refuses)
    for at in (3, 9):
        left[0] = at
        with pytest.raises(KeyboardInterrupt):
            merge(tmp_path)
        assert not (tmp_path / "run.json").exists()
    merge(tmp_path)
    assert rows(tmp_path) == rows(base)
    assert check(tmp_path) == []
    assert not list(tmp_path.rglob("*.part"))


def test_parts_must_agree_with_each_other(tmp_path, monkeypatch):
    record(tmp_path, part=(1, 2))
    with pytest.raises(RunError, match=r"is recorded in 2 parts, got part 1/3; give `part='I/2'`"):
        record(tmp_path, part=(1, 3))
    with pytest.raises(RunError, match=r"at multiples of 8 images, got a batch size of 4; give"):
        record(tmp_path, part=(2, 2), batch_size=4)
    with pytest.raises(RunError, match=r"is recorded in parts; join them with `gradscore run mer"):
        record(tmp_path)
    with pytest.raises(RunError, match=r"is recorded in parts; join them with `gradscore run mer"):
        RunStore(tmp_path)
    with pytest.raises(RunError, match=r"begun as part 1/2 of 26 images, got 20 or others"):
        record(tmp_path, part=(1, 2), limit=20)
    with pytest.raises(RunError, match=r"Part 1/2 of .* has preprocessing.std \[0.38\], got"):
        record(tmp_path, part=(2, 2), preprocessing={"std": 0.4})
    few = {"part": (2, 2), "limit": LIMITS | {"noise": 5}}
    with pytest.raises(
        RunError, match=r"Part 1/2 of .*: set noise has rows 13, got 5; give the same"
    ):
        record(tmp_path, **few)
    monkeypatch.setattr("gradscore.extraction.directory._agree_on_sets", lambda *how: None)
    record(tmp_path, **few)  # as where both began at once
    with pytest.raises(RunError, match=r"Part 1/2 of .* has sets.noise.rows 13, .*2-of-2 has 5;"):
        merge(tmp_path)


def test_a_part_takes_what_another_learned(tmp_path, monkeypatch):
    how = EVERY | {"record": "mahalanobis", "epsilon": (), "keep": ()}
    record(tmp_path, part=(1, 2), **how)
    with monkeypatch.context() as patch:
        patch.delattr("gradscore.extraction.stage_fit.fit_gaussians")
        record(tmp_path, part=(2, 2), **how)
    with RunStore.open_for_writing(tmp_path / ".parts" / "2-of-2") as store:
        (fit,) = store.info.fits.values()
        arrays = store.read_fit(fit.name)
        store.write_fit(fit, arrays | {"bias": arrays["bias"] + 1})
    with pytest.raises(RunError, match=r"Part 1/2 of .* has fits\.\S*\.sha256 '.*2-of-2 has '"):
        merge(tmp_path)


def test_a_run_of_another_preprocessing_is_not_joined_with_parts(base, tmp_path):
    record(tmp_path, part=(1, 1), preprocessing={"std": 0.4})
    shutil.copy(base / "run.json", tmp_path)
    with pytest.raises(RunError, match=r"has preprocessing.std \[0.4\], the run .* has \[0.38\]"):
        merge(tmp_path)


def test_parts_pass_over_images_that_could_not_be_read(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for place in range(6):
        noise = np.random.default_rng(place).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(noise).save(pictures / f"{place}.png")
    (pictures / "4.png").write_bytes(b"no picture")
    sets = {"mine": ("id", pictures)}
    how = {"layers": "last", "batch_size": 2, "on_error": "skip"}
    for run in (tmp_path / "one", tmp_path / "parts"):
        extract("digits", sets, run, **how)
    extract("digits", sets, tmp_path / "one", keep="block4", **how)
    for number in (1, 2):
        extract("digits", sets, tmp_path / "parts", keep="block4", part=(number, 2), **how)
    merge(tmp_path / "parts")
    assert rows(tmp_path / "parts") == rows(tmp_path / "one")
    assert check(tmp_path / "parts") == []


def test_a_link_in_the_place_of_a_parts_file_is_refused_as_that(tmp_path):
    for number in (1, 2):
        record(tmp_path, part=(number, 2))
    place = tmp_path / ".parts/2-of-2/digits/base/shard-00001.h5"
    place.rename(tmp_path / "outside.h5")
    place.symlink_to(tmp_path / "outside.h5")
    with pytest.raises(RunError, match=rf"{place} is a link, which is not followed"):
        merge(tmp_path)
    assert not (tmp_path / "digits").exists()


def test_a_file_of_a_part_that_is_gone_is_named(tmp_path):
    for number in (1, 2):
        record(tmp_path, part=(number, 2))
    place = tmp_path / ".parts/2-of-2/digits/base/shard-00001.h5"
    place.unlink()
    with pytest.raises(RunError, match=rf"{place} is missing; record that part again"):
        merge(tmp_path)
    record(tmp_path, part=(2, 2))
    merge(tmp_path)
    assert check(tmp_path) == []


@pytest.mark.parametrize("place", [".parts", ".parts/1-of-1"])
def test_a_link_in_the_place_of_parts_is_refused(tmp_path, place):
    elsewhere = tmp_path / "elsewhere"
    record(elsewhere, part=(1, 1))
    run = tmp_path / "run"
    (run / place).parent.mkdir(parents=True)
    (run / place).symlink_to(elsewhere / place)
    for work in (lambda: merge(run), lambda: record(run, part=(1, 1))):
        with pytest.raises(RunError, match=r"got .*; delete it"):
            work()


def test_there_is_nothing_to_merge(tmp_path):
    with pytest.raises(RunError, match=r"No parts of a run in .*; record them with `gradscore ex"):
        merge(tmp_path)


@pytest.mark.parametrize(
    ("variables", "part", "expected"),
    [
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8"}, "env", (6, 8)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_COUNT": "5",
                "SLURM_ARRAY_TASK_MIN": "1",
            },
            "env",
            (5, 5),
        ),
        ({"JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "3"}, "env", (1, 3)),
        ({"JOB_COMPLETION_INDEX": "2"}, "env/3", (3, 3)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "env", (2, 2)),
        ({"RANK": "1"}, (1, 2), (1, 2)),
        ({"RANK": "1"}, "2/2", (2, 2)),
        ({}, None, None),
    ],
)
def test_a_job_says_which_part_is_meant(variables, part, expected):
    assert parse_part(part, variables)[0] == expected


@pytest.mark.parametrize(
    ("variables", "part", "error"),
    [
        ({}, "env", "got none of them; give `part='I/N'`"),
        (
            {"SLURM_ARRAY_TASK_ID": "5", "RANK": "0"},
            "env",
            "got SLURM_ARRAY_TASK_ID and RANK; give `part='I/N'`",
        ),
        ({"RANK": "1"}, "env", "tasks in WORLD_SIZE beside RANK, got none; give `part='env/N'`"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "env", "got RANK=2 and WORLD_SIZE=2; give"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "env", "got RANK=x and WORLD_SIZE=2; give"),
        ({}, "0/8", "such as 3/8; or env, or env/N, got '0/8'"),
        ({}, "9/8", "got '9/8'"),
        ({}, "3", "got '3'"),
        ({}, "env/", "got 'env/'"),
        ({}, (1, 2, 3), r"got \(1, 2, 3\)"),
        ({}, (True, 2), r"got \(True, 2\)"),
    ],
)
def test_a_part_that_cannot_be_is_refused(variables, part, error):
    with pytest.raises(InvalidArgument, match=error):
        parse_part(part, variables)
