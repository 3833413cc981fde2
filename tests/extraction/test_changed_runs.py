"""A run that lives on: its folders change or vanish, sets are removed, limits grow."""

import errno
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from gradscore.cli import cli
from gradscore.errors import DataError, RunError
from gradscore.recorded import Run, extract
from gradscore.run import RunStore, check, remove_set
from gradscore.run.changes import repair


def folder(path, count=6, side=8, seed=0):
    """Make a folder of ``count`` noise images in two classes."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        place = path / f"{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number:03}.png")
    return path


def record(run, layers="last", **sets):
    how = {"layers": layers, "batch_size": 4, "shard_rows": 4}
    limit = sets.pop("limit", None)
    return extract("digits", sets, run, limit=limit, **how).store


def invoke(*command):
    return CliRunner().invoke(cli, [str(word) for word in command])


@pytest.fixture
def two_sets(tmp_path):
    """Return a run of two sets, and their folders."""
    sound, other = folder(tmp_path / "sound"), folder(tmp_path / "other", seed=1)
    record(tmp_path / "run", sound=("id", sound), other=("ood", other))
    return tmp_path / "run", sound, other


@pytest.mark.parametrize("harm", ["vanished", "changed"])
def test_a_folder_that_is_not_what_it_was_keeps_no_other_waiting(two_sets, harm):
    run, _, other = two_sets
    if harm == "vanished":
        shutil.rmtree(other)
    else:
        folder(other, count=8, seed=2)
        (other / "0" / "000.png").unlink()
    with pytest.raises(DataError, match=r"(?i)left out: .* other sets are recorded\."):
        record(run, "block4", sound=("id", run.parent / "sound"), other=("ood", other))
    passes = RunStore(run).sets
    assert passes["sound"].complete("norms-uniform-T1-p1-block4")
    assert not passes["other"].done("norms-uniform-T1-p1-block4")
    result = invoke("extract", "--run", run, "-p", "2", "--layers", "block4")
    assert result.exit_code == 1 or isinstance(result.exception, DataError)
    assert RunStore(run).sets["sound"].complete("norms-uniform-T1-p2-block4")


def test_a_new_set_that_cannot_be_opened_ends_the_extraction_at_once(two_sets):
    run, sound, _ = two_sets
    sets = {"sound": ("id", sound), "third": ("ood", run.parent / "nowhere")}
    with pytest.raises(DataError, match=r"^No such file or folder: "):
        record(run, "block4", **sets)
    assert not RunStore(run).sets["sound"].done("norms-uniform-T1-p1-block4")


def test_where_no_set_is_left_the_first_fault_is_the_error(two_sets):
    run, sound, _ = two_sets
    shutil.rmtree(sound)
    with pytest.raises(DataError, match=r"^No such file or folder: "):
        record(run, "block4", sound=("id", sound))


def test_the_command_that_a_changed_set_names_forgets_it(two_sets):
    run, _, other = two_sets
    folder(other, count=10, seed=3)
    (other / "0" / "000.png").unlink()
    with pytest.raises(DataError) as caught:
        record(run, other=("ood", other))
    command = str(caught.value).partition("`gradscore ")[2].partition("`")[0]
    result = invoke(*command.split())
    assert result.exit_code == 0, result.output
    assert list(RunStore(run).sets) == ["sound"]
    record(run, other=("ood", other))
    assert RunStore(run).sets["other"].rows == 9
    assert not check(run)


def test_removing_a_set_takes_its_files_and_what_was_learned_from_it(tmp_path):
    run, sound = tmp_path / "run", folder(tmp_path / "sound", count=40)
    sets = {"train": ("fit", "digits:train"), "sound": ("ood", sound)}
    extract(
        "digits", sets, run, layers="last", limit=40, record="mahalanobis", fit="train",
        batch_size=20,
    )  # fmt: skip
    result = invoke("run", "remove", "train", "--run", run)
    assert result.exit_code == 0, result.output
    assert "and with it mahalanobis" in result.stderr
    store = RunStore(run)
    assert (list(store.sets), store.info.fits) == (["sound"], {})
    assert list(store.info.passes) == ["blocks"]
    left = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    rows = {f"sound/{name}/shard-00000.h5" for name in ("base", "blocks")}
    assert left == {".lock", "run.json", "head.safetensors", *rows}
    assert not check(run)


def test_a_set_that_is_not_there_is_named_with_those_that_are(two_sets):
    with (
        RunStore.open_for_writing(two_sets[0]) as store,
        pytest.raises(RunError, match=r"\(sound, other\), got 'third'"),
    ):
        remove_set(store, "third")


def test_a_larger_limit_extends_a_set_and_a_smaller_one_says_what_to_give(tmp_path):
    run, images = tmp_path / "run", folder(tmp_path / "images", count=20)
    record(run, images=("id", images), limit=6)
    record(run, images=("id", images), limit=14)
    entry = RunStore(run).sets["images"]
    assert (entry.rows, entry.complete("base")) == (14, True)
    whole = record(tmp_path / "whole", images=("id", images), limit=14)
    for field in ("features", "logits"):
        parts, at_once = (getattr(Run(path), field)("images") for path in (run, whole.path))
        torch.testing.assert_close(parts, at_once)
    with pytest.raises(DataError, match=r"has 14 images, got 8; give `limit=14` or more"):
        record(run, images=("id", images), limit=8)


@pytest.mark.parametrize("command", [["run", "info"], ["run", "check"], ["compare"]])
def test_the_run_may_be_given_as_argument_or_option(two_sets, command):
    run = two_sets[0]
    by_argument, by_option = invoke(*command, run), invoke(*command, "--run", run)
    assert by_argument.exit_code == by_option.exit_code == 0, by_option.output
    assert by_argument.stdout == by_option.stdout
    if command[0] == "run":
        assert invoke(*command, run, "--run", run).exit_code == 2
    else:
        assert invoke(*command).exit_code == 2


def test_a_disk_without_locks_says_so(tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("gradscore.run.lock.fcntl.flock", refuse)
    with pytest.raises(RunError, match=r"gives no locks \(No locks available\)"):
        record(tmp_path / "run", sound=("id", folder(tmp_path / "sound")))


def test_a_shard_that_is_made_again_may_be_interrupted_once_more(tmp_path):
    images = folder(tmp_path / "images", count=12)
    (images / "0" / "004.png").write_bytes(b"no picture")
    sets, run = {"images": ("id", images)}, tmp_path / "run"
    how = {"batch_size": 4, "shard_rows": 4, "on_error": "skip", "layers": "block4"}
    extract("digits", sets, run, **how)
    (run / "images" / "base" / "shard-00000.h5").unlink()
    with RunStore.open_for_writing(run) as store:
        repair(store, {})
        store.save()
    extract("digits", sets, run, **how)
    assert not check(run)
