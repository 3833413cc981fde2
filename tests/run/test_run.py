"""The run on disk: its layout, one writer at a time, streaming reads, and every damage found."""

import errno
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from contextlib import suppress

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from helpers.recorded_run import base_rows

from gradscore.cli import cli
from gradscore.errors import NotRecorded, RunError
from gradscore.objective import Objective
from gradscore.run import (
    FailedRow,
    FitInfo,
    HeadInfo,
    PassInfo,
    RunInfo,
    RunStore,
    SetInfo,
    check,
    norms_name,
)
from gradscore.run.building import build_shard
from gradscore.run.changes import repair

PASS = "norms-uniform-T0.5-pinf"
ROWS = 100


def make_info(features=3):
    head = HeadInfo("fc", ("fc.weight",), "fc.bias", True)
    parameters = {"conv.weight": 9, "fc.weight": 6}
    groups = {"last": ("fc.weight",), "all": tuple(parameters)}
    return RunInfo(
        "tiny", None, "ab" * 32, {"crop": 8}, "float32", 2, features, (1, 8, 8), head,
        parameters, groups,
    )  # fmt: skip


def norm_rows(index):
    index = np.asarray(index)
    return {"index": index, "norms": np.stack([index, index * 2], axis=1).astype(np.float32)}


@pytest.fixture
def run(tmp_path):
    """A finished run of one set whose passes are cut into shards at different places."""
    path = tmp_path / "run"
    with RunStore.create(path, make_info(), {"weight": np.ones((2, 3), np.float32)}) as store:
        store.add_set(SetInfo("digits", "id", "digits:test", "cd" * 32, ROWS))
        store.add_pass(
            PassInfo(
                PASS, "norms", "uniform", 0.5, math.inf, "rules", ("conv.weight", "fc.weight")
            )
        )
        for start, stop in [(0, 40), (40, 41), (41, ROWS)]:
            failed = [FailedRow(50, "dir/é50.png", "truncated")] if start == 41 else []
            index = [i for i in range(start, stop) if i != 50]
            store.add_shards("digits", {"base": base_rows(index)}, (start, stop), failed)
        for start, stop in [(0, 30), (30, 80), (80, ROWS)]:
            index = [i for i in range(start, stop) if i != 50]
            store.add_shards("digits", {PASS: norm_rows(index)}, (start, stop))
    return path


def test_the_layout_is_as_documented(run):
    files = sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file())
    assert files == [
        ".lock",
        *(f"digits/base/shard-0000{i}.h5" for i in range(3)),
        *(f"digits/{PASS}/shard-0000{i}.h5" for i in range(3)),
        "head.safetensors",
        "run.json",
    ]
    content = json.loads((run / "run.json").read_text())
    assert content["format"] == 2
    assert content["passes"][PASS]["p"] == "inf"
    with h5py.File(run / "digits/base/shard-00000.h5") as file:
        assert sorted(file) == ["features", "index", "label", "logits", "path"]
        for dataset in file.values():
            assert dataset.fletcher32
            assert dataset.compression is None
        assert file["features"].dtype == np.float32
        assert file["path"].asstr()[1] == "dir/é1.png"


def test_equal_rows_give_equal_bytes():
    assert build_shard(base_rows(range(5))) == build_shard(base_rows(range(5)))


def test_what_is_written_is_read_back(run):
    store = RunStore(run)
    assert store.sets["digits"].recorded() == ROWS - 1
    assert store.info.passes[PASS].p == math.inf
    (entry,) = store.info.passes.values()
    assert entry == store.find_norms(Objective(math.inf, 0.5), store.info.parameters)
    np.testing.assert_array_equal(store.head()["weight"], np.ones((2, 3)))


def test_wide_rows_come_in_fewer_at_once(run, monkeypatch):
    store = RunStore(run)
    width = 4 * (store.info.features + store.info.classes)
    whole = [len(block["logits"]) for block in store.blocks("digits", ("features", "logits"))]
    monkeypatch.setattr("gradscore.run.blocks.BLOCK_BYTES", 5 * width)
    few = [len(block["logits"]) for block in store.blocks("digits", ("features", "logits"))]
    assert max(few) == 4 < max(whole)
    assert sum(few) == sum(whole)
    assert [len(block["label"]) for block in store.blocks("digits", ("label",))] == whole
    monkeypatch.setattr("gradscore.run.blocks.BLOCK_BYTES", 1)  # a row is a block at least
    assert {len(block["logits"]) for block in store.blocks("digits", ("logits",))} == {1}


@pytest.mark.parametrize("rows", [1, 7, 40, 1000])
def test_blocks_join_passes_in_index_order(run, rows):
    index = np.array([i for i in range(ROWS) if i != 50])
    blocks = list(RunStore(run).blocks("digits", norms=[PASS], rows=rows))
    assert max(len(block["index"]) for block in blocks) <= rows
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    for name, values in {**base_rows(index), PASS: norm_rows(index)["norms"]}.items():
        np.testing.assert_array_equal(joined[name], values)


def test_a_reader_that_stops_early_leaves_no_thread(run):
    before = threading.active_count()
    blocks = RunStore(run).blocks("digits", rows=1)
    next(blocks)
    blocks.close()
    assert threading.active_count() <= before  # others end by themselves


def test_a_set_without_rows_or_features(tmp_path):
    with RunStore.create(tmp_path / "run", make_info(features=0)) as store:
        store.add_set(SetInfo("none", None, "x", "00", 2))
        failed = [FailedRow(i, f"{i}.png", "truncated") for i in range(2)]
        store.add_shards("none", {"base": base_rows([], features=0)}, (0, 2), failed)
        assert list(store.blocks("none", fields=("logits",))) == []
        assert check(tmp_path / "run") == []
        with pytest.raises(NotRecorded, match="holds no features"):
            store.blocks("none")
        with pytest.raises(NotRecorded, match="holds no last layer"):
            store.head()


def test_the_smallest_pass_that_holds_the_parameters_is_found(run):
    with RunStore.open_for_writing(run) as store:
        name = norms_name("uniform", 0.5, math.inf, "last")
        store.add_pass(PassInfo(name, "norms", "uniform", 0.5, math.inf, "rules", ("fc.weight",)))
        assert store.find_norms(Objective(math.inf, 0.5), ["fc.weight"]).name == name
        assert store.find_norms(Objective(math.inf, 0.5), ["conv.weight"]).name == PASS
        assert store.find_norms(Objective(math.inf, 0.5), store.info.parameters).name == PASS
        with pytest.raises(NotRecorded, match=r"--layers all -p 2 -T 1 --target uniform`"):
            store.find_norms(Objective(2.0), ["fc.weight"])


def test_unfinished_and_unknown_sets_are_refused_with_the_command(tmp_path):
    with RunStore.create(tmp_path / "my run", make_info()) as store:
        store.add_set(SetInfo("half", "ood", "my images", "00", 10))
        store.add_shards("half", {"base": base_rows(range(5))}, (0, 5))
        message = (
            "half: features and logits of 5 of 10 images are recorded; go on with "
            f"`gradscore extract --run '{tmp_path}/my run' --layers last`."
        )
        with pytest.raises(NotRecorded, match=message):
            store.blocks("half")
        with pytest.raises(NotRecorded, match=r"\(half\), got 'other'"):
            store.blocks("other")
        with pytest.raises(RunError, match=r"fields of index, path, label, .* got 'color'"):
            store.blocks("half", fields=("color",))


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(
        RunError,
        match=r"No run in .*; make one with `gradscore extract --run /.*absent --model SPEC --id",
    ):
        RunStore(tmp_path / "absent")
    with pytest.raises(RunError, match="No run in"):
        check(tmp_path)


def test_names_that_could_leave_the_run_are_refused(tmp_path):
    with RunStore.create(tmp_path / "run", make_info()) as store:
        for name in ("../out", "a/b", "", ".hidden", "a b"):
            with pytest.raises(RunError, match="Expected a set name of letters"):
                store.add_set(SetInfo(name, None, "x", "00", 1))


@pytest.mark.parametrize("name", ["mean", "fits", "run.json", "head.safetensors"])
def test_names_that_mean_something_else_are_refused(tmp_path, name):
    with RunStore.create(tmp_path / "run", make_info()) as store:
        expected = f"another set name than mean, fits, .*, got '{name}'"
        with pytest.raises(RunError, match=expected):
            store.add_set(SetInfo(name, None, "x", "00", 1))


def test_another_format_is_refused(run, monkeypatch):
    monkeypatch.setattr("gradscore.run.layout.FORMATS", (1,))
    with pytest.raises(RunError, match="Expected a run of format 1, got format 2"):
        RunStore(run)


def test_a_second_writer_is_refused_and_readers_are_not(run):
    with RunStore.open_for_writing(run):
        with pytest.raises(RunError, match=rf"another process \(pid {os.getpid()}\)"):
            RunStore.open_for_writing(run)
        other = (
            "from gradscore.run import RunStore; from gradscore.errors import RunError\n"
            f"print(RunStore({str(run)!r}).info.model)\n"
            f"try: RunStore.open_for_writing({str(run)!r})\n"
            "except RunError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
        assert done.stdout.startswith("tiny\n"), done.stderr
        assert f"(pid {os.getpid()})" in done.stdout
    RunStore.open_for_writing(run).close()


def test_a_forked_worker_does_not_keep_the_lock(run):
    with RunStore.open_for_writing(run):
        child = os.fork()
        if child == 0:
            threading.Event().wait(60)
            os._exit(0)
    try:
        RunStore.open_for_writing(run).close()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_run_is_not_made_twice(run):
    with pytest.raises(RunError, match="There is a run in"):
        RunStore.create(run, make_info())
    with pytest.raises(RunError, match="opened for reading only"):
        RunStore(run).save()


def test_a_sound_run_has_no_problems(run):
    assert check(run) == []


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "head.safetensors",
        "digits/base/shard-00000.h5",
        f"digits/{PASS}/shard-00001.h5",
    ],
)
def test_flips_and_truncations_are_found_in_their_file(run, name):
    path, rng = run / name, np.random.default_rng(0)
    sound = path.read_bytes()
    places = rng.integers(0, len(sound), 15)
    damaged = [sound[:place] for place in places]
    damaged += [
        sound[:place] + bytes([sound[place] ^ 1 << int(rng.integers(8))]) + sound[place + 1 :]
        for place in places
    ]
    for content in [*damaged, sound + b" ", b""]:
        path.write_bytes(content)
        assert [problem.file for problem in check(run)] == [name]
    path.write_bytes(sound)
    assert check(run) == []


def test_damage_is_never_read_as_data(run):
    path = run / "digits/base/shard-00000.h5"
    sound, expected = path.read_bytes(), list(RunStore(run).blocks("digits"))
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(sound), 60):
        bad = (
            sound[:place] + bytes([sound[place] ^ 1 << int(rng.integers(8))]) + sound[place + 1 :]
        )
        path.write_bytes(bad)
        with suppress(RunError):
            for block, other in zip(RunStore(run).blocks("digits"), expected, strict=True):
                for name in block:
                    np.testing.assert_array_equal(block[name], other[name])


def test_missing_and_exchanged_files_are_found(run):
    first, second = (run / f"digits/{PASS}/shard-0000{i}.h5" for i in (0, 1))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    assert [problem.file for problem in check(run)] == [f"digits/{PASS}/shard-00000.h5"]
    with pytest.raises(RunError, match="its SHA-256 is not the recorded one"):
        list(RunStore(run).blocks("digits", norms=[PASS]))
    first.write_bytes(kept)
    second.unlink()
    (problem,) = check(run)
    assert problem.reason == "is missing"
    with pytest.raises(RunError, match=r"shard-00001.h5 is missing"):
        list(RunStore(run).blocks("digits", norms=[PASS]))


def test_a_file_that_may_not_be_read_is_not_called_damaged(run, monkeypatch):
    given = os.open

    def refuse(path, *arguments, **how):
        if str(path).endswith(refused):
            raise PermissionError(errno.EACCES, "Permission denied")
        return given(path, *arguments, **how)

    monkeypatch.setattr("gradscore.run.files.os.open", refuse)
    refused = "none"
    store = RunStore(run)
    asked = {
        "shard-00000.h5": lambda: list(store.blocks("digits")),
        "head.safetensors": store.head,
        "run.json": lambda: RunStore(run),
    }
    for refused, ask in asked.items():
        for read in (ask, lambda: check(run)):
            with pytest.raises(RunError, match=rf"^Cannot read .*{refused}: Permission denied\.$"):
                read()


def test_wrong_row_ranges_are_found(run):
    with RunStore.open_for_writing(run) as store:
        store.sets["digits"].passes["base"][1].start = 39
        store.sets["digits"].passes[PASS][2].rows = 21
        store.save()
    faults = check(run)
    assert any("expected images from 40 on, got 39 to 41" in problem.reason for problem in faults)
    assert any("expected 20 rows, got 21" in problem.reason for problem in faults)
    with pytest.raises(RunError):
        list(RunStore(run).blocks("digits", norms=[PASS]))


def test_a_full_disk_is_one_line_and_loses_nothing(run):
    code = f"""
import resource, signal, sys
sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from helpers.recorded_run import base_rows
from gradscore.errors import RunError
from gradscore.run import RunStore, SetInfo
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with RunStore.open_for_writing({str(run)!r}) as store:
    store.add_set(SetInfo("more", "ood", "x", "00", 10_000))
    store.add_shards("more", {{"base": base_rows(range(10))}}, (0, 10))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        store.add_shards("more", {{"base": base_rows(range(10, 10_000))}}, (10, 10_000))
    except RunError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Cannot write" in done.stdout, done.stderr
    assert "File too large. What was finished is kept" in done.stdout
    assert check(run) == []
    assert RunStore(run).sets["more"].done("base") == 10
    assert not list(run.rglob("*.part"))


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"Cannot write .*/file/run/.lock: Not a directory"):
        RunStore.create(tmp_path / "file" / "run", make_info())


def test_ranges_beyond_a_set_end_before_they_are_gone_through(run):
    with RunStore.open_for_writing(run) as store:
        for key in ("stop", "rows"):
            setattr(store.sets["digits"].passes["base"][-1], key, 2**60)
        store.save()
    beyond = pytest.raises(RunError, match=rf"to {2**60} of 100; delete it, then make it again")
    with RunStore.open_for_writing(run) as store, beyond:
        repair(store, {})


@pytest.mark.parametrize("gone", ["fits", "digits", f"digits/{PASS}"])
def test_of_a_folder_that_is_gone_all_is_made_again(run, gone):
    with RunStore.open_for_writing(run) as store:
        for method in ("mahalanobis", "mahalanobis_stages"):
            fit = FitInfo(f"{method}-digits", method, {"digits": "0" * 64}, {}, "", "0" * 64)
            store.info.fits[fit.name] = fit
        store.save()
    shutil.rmtree(run / gone, ignore_errors=True)
    norms = "--layers all -p inf -T 0.5 --target uniform --on-error"
    asked = {
        "fits": ("--method mahalanobis --fit digits", "--record mahalanobis --fit digits"),
        "digits": ("--layers last --on-error", norms),
        f"digits/{PASS}": (norms,),
    }[gone]
    repairs = {problem.file: problem.repair for problem in check(run)}
    assert repairs[gone].count("`gradscore ") == len(asked)
    assert all(part in repairs[gone] for part in asked)
    told = CliRunner().invoke(cli, ["run", "check", str(run)]).output
    assert [told.count(f"{part}") for part in asked] == [1] * len(asked)
    assert "`" not in told


def test_a_directory_whose_name_holds_a_nul_is_one_line(tmp_path):
    with pytest.raises(RunError, match="without NUL"):
        RunStore.create(f"{tmp_path}/a\0b", make_info())
