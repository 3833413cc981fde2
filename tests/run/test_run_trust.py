"""Runs that come from someone else: nothing outside is touched, nothing altered is read."""

import json
import os
import shutil
import socket
import sys

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.hostile_run import (
    BASE,
    NORMS,
    PASS,
    ROWS,
    accept,
    alter,
    read,
    rebuild,
    refusals,
    say,
    says,
    sign,
    sound_run,
)
from helpers.small_models import make_model
from PIL import Image

from gradscore.cli import cli
from gradscore.errors import DataError, GradScoreError, ModelError, NotRecorded, RunError
from gradscore.models import create_model
from gradscore.recorded import Run, extract
from gradscore.run import RunStore, SetInfo, check


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return sound_run(tmp_path_factory.mktemp("sound") / "run")


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def outside(tmp_path):
    path = tmp_path / "outside"
    path.write_text("kept")
    return path


def refused(run, match):
    """Check that a run is refused with the same words by its readers and by ``run check``."""
    problems, error = refusals(run)
    assert isinstance(error, RunError), error
    assert problems
    assert problems[0].reason in str(error)
    assert "\n" not in str(error)
    with pytest.raises(RunError, match=match):
        raise error


def write_more(run):
    with RunStore.open_for_writing(run) as store:
        store.add_set(SetInfo("more", "ood", "x", "0" * 64, 4))
        index = np.arange(4)
        base = {
            "index": index,
            "path": np.array(["x"] * 4, dtype=object),
            "label": index,
            "features": np.zeros((4, 3), np.float32),
            "logits": np.zeros((4, 2), np.float32),
        }
        store.add_shards("more", {"base": base}, (0, 4))


# Links and special files


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_a_lock_that_is_another_file_is_refused(run, tmp_path, link):
    (run / ".lock").unlink()
    link(outside(tmp_path), run / ".lock")
    with pytest.raises(RunError, match=r"Expected the run's own lock, .*; delete it"):
        write_more(run)
    assert (tmp_path / "outside").read_text() == "kept"


def test_a_lock_that_is_no_file_is_refused(run):
    (run / ".lock").unlink()
    os.mkfifo(run / ".lock")
    with pytest.raises(RunError, match="Expected the run's own lock"):
        write_more(run)


@pytest.mark.parametrize(
    "name", ["run.json.part", "more/base/shard-00000.h5.part", "more/base/shard-00000.h5"]
)
def test_nothing_is_written_through_a_link(run, tmp_path, name):
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(outside(tmp_path))
    write_more(run)
    assert (tmp_path / "outside").read_text() == "kept"
    assert len(read(run)) == 5
    assert check(run) == []


@pytest.mark.parametrize("name", ["more", "more/base"])
def test_no_folder_outside_is_written(run, tmp_path, name):
    there = tmp_path / "there"
    there.mkdir()
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(there)
    with pytest.raises(RunError, match="Cannot write"):
        write_more(run)
    assert list(there.rglob("*")) == []


@pytest.mark.parametrize(
    "name", ["run.json", "head.safetensors", "digits", "digits/base", BASE, NORMS]
)
def test_no_link_is_followed(run, tmp_path, name):
    moved = tmp_path / "moved"
    shutil.move(run / name, moved)
    (run / name).symlink_to(moved)
    refused(run, "is a link, which is not followed")
    (run / name).unlink()
    (run / name).symlink_to(tmp_path / "absent")
    refused(run, "is a link, which is not followed")


def test_a_run_may_itself_be_a_link(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    write_more(tmp_path / "link")
    assert check(tmp_path / "link") == []
    assert len(read(run)) == 5


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, make_socket, os.mkdir])
@pytest.mark.parametrize("name", ["run.json", "head.safetensors", BASE])
def test_what_is_no_regular_file_is_not_waited_for(run, name, make, monkeypatch):
    (run / name).unlink()
    monkeypatch.chdir((run / name).parent)
    make((run / name).name)
    refused(run, "is no regular file|cannot be read")


# Shards that are not those recorded


def test_exchanged_copied_and_foreign_shards_are_refused(run):
    with RunStore.open_for_writing(run) as store:
        store.add_set(SetInfo("other", "ood", "x", "0" * 64, ROWS))
        for start in (0, 10):
            index = np.arange(start, start + 10)
            base = {
                "index": index,
                "path": np.array(["x"] * 10, dtype=object),
                "label": index,
                "features": np.zeros((10, 3), np.float32),
                "logits": np.ones((10, 2), np.float32),
            }
            store.add_shards("other", {"base": base}, (start, start + 10))
    second, foreign = "digits/base/shard-00001.h5", "other/base/shard-00001.h5"
    ours, theirs = (run / second).read_bytes(), (run / foreign).read_bytes()
    (run / second).write_bytes(theirs)
    (run / foreign).write_bytes(ours)
    for name in ("digits", "other"):
        with pytest.raises(RunError, match=r"shard-00001.h5 is damaged: its SHA-256 is not"):
            list(RunStore(run).blocks(name))
    assert [problem.file for problem in check(run)] == [second, foreign]


def test_no_bit_of_a_shards_metadata_changes_a_score(run):
    path = run / BASE
    sound, expected = path.read_bytes(), read(run)
    for place in range(0, 2400, 24):
        bad = bytearray(sound)
        bad[place] ^= 1 << place // 24 % 8
        path.write_bytes(bad)
        with pytest.raises(RunError, match="SHA-256"):
            read(run)
    path.write_bytes(sound)
    for block, other in zip(read(run), expected, strict=True):
        assert all(np.array_equal(block[name], other[name]) for name in other)


def test_large_shards_are_read_through_the_descriptor_that_was_hashed(run, monkeypatch):
    expected = read(run)
    monkeypatch.setattr("gradscore.run.hashed.IN_MEMORY", 0)
    for block, other in zip(read(run), expected, strict=True):
        assert all(np.array_equal(block[name], other[name]) for name in other)
    blocks = RunStore(run).blocks("digits", rows=2)
    next(blocks)
    os.truncate(run / BASE, 100)
    with pytest.raises(RunError, match="it changed while it was read"):
        list(blocks)


# Shards whose digest fits, and which are not what extraction writes


def replaced(name, **how):
    def change(shard):
        del shard[name]
        shard.create_dataset(name, **how)

    return change


def external_storage(shard):
    del shard["path"]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_external(b"/etc/passwd", 0, 9 * 8)
    kind = h5py.h5t.py_create(h5py.string_dtype("utf-8", 8), logical=True)
    space = h5py.h5s.create_simple((9,))
    h5py.h5d.create(shard.id, b"path", kind, space, plist)


def external_link(shard):
    del shard["logits"]
    shard["logits"] = h5py.ExternalLink("shard-00001.h5", "logits")


def absolute_link(shard):
    del shard["logits"]
    shard["logits"] = h5py.ExternalLink("/etc/passwd", "logits")


def soft_link(shard):
    shard.move("logits", "there")
    shard["logits"] = h5py.SoftLink("there")


def looping_link(shard):
    del shard["logits"]
    shard["logits"] = h5py.SoftLink("logits")


def virtual(shard):
    del shard["logits"]
    layout = h5py.VirtualLayout((9, 2), np.float32)
    layout[:] = h5py.VirtualSource("shard-00001.h5", "logits", (10, 2))[:9]
    shard.create_virtual_dataset("logits", layout)


def a_group(shard):
    del shard["logits"]
    shard.create_group("logits")


def renamed(shard):
    shard.move("logits", "logit")


def another_more(shard):
    shard.create_dataset("more", data=np.zeros(9))


def other_index(shard):
    shard["index"][0] = 1


def descending(shard):
    shard["index"][:] = shard["index"][:][::-1]


def with_the_failed(shard):
    shard["index"][3] = 3


CHUNKED = {"chunks": (1, 2), "maxshape": (None, 2)}
HOSTILE = {
    "external storage": (external_storage, "path is not stored in chunks"),
    "external link": (external_link, "logits is a link"),
    "absolute link": (absolute_link, "logits is a link"),
    "soft link": (soft_link, "expected the datasets|logits is a link"),
    "looping link": (looping_link, "logits is a link"),
    "virtual": (virtual, "logits is not stored in chunks"),
    "group": (a_group, "logits is no dataset"),
    "renamed": (renamed, "'logits' is not among them"),
    "one more": (another_more, "expected the datasets .*; there are 6"),
    "text of any length": (
        replaced("path", data=["a"] * 9, chunks=(3,)),
        "expected path of text of a fixed length",
    ),
    "objects": (
        replaced("logits", shape=(9, 2), dtype=h5py.ref_dtype, chunks=(3, 2)),
        "expected logits of float32",
    ),
    "records": (
        replaced("logits", shape=(9, 2), dtype=[("a", "f4")], chunks=(3, 2)),
        "expected logits of float32",
    ),
    "other type": (
        replaced("logits", data=np.zeros((9, 2)), chunks=(3, 2)),
        "expected logits of float32",
    ),
    "other shape": (
        replaced("logits", data=np.zeros((9, 3), np.float32), chunks=(3, 3)),
        r"expected logits of shape \[9, 2\], got \[9, 3\]",
    ),
    "no dimensions": (
        replaced("label", data=np.int64(1)),
        "label is not stored in chunks",
    ),
    "huge": (
        replaced("logits", shape=(2**40, 2), dtype="f4", chunks=(1024, 2)),
        "expected logits of shape",
    ),
    "huge chunks": (
        replaced("logits", shape=(9, 2), dtype="f4", chunks=(2**28, 2), maxshape=(None, 2)),
        "logits is cut into chunks",
    ),
    "not there": (
        replaced("logits", shape=(9, 2), dtype="f4", **CHUNKED),
        "a chunk of 8 bytes is not there",
    ),
    "compressed": (
        replaced("logits", data=np.zeros((9, 2), np.float32), compression="gzip", **CHUNKED),
        "passes a filter that is not used",
    ),
    "in one piece": (
        replaced("logits", data=np.zeros((9, 2), np.float32)),
        "logits is not stored in chunks",
    ),
    "other images": (other_index, "expected the rows of the images 0 to 10"),
    "another order": (descending, "expected the rows of the images 0 to 10"),
    "a failed image": (with_the_failed, "expected the rows of the images 0 to 10"),
    "not finite": (replaced("logits", data=np.full((9, 2), np.nan, np.float32), **CHUNKED), ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_shard_that_extraction_does_not_write_is_refused(run, name):
    change, match = HOSTILE[name]
    rebuild(run, BASE, change)
    if match:
        refused(run, match)
    else:  # read as they are, and refused when they are scored
        assert check(run)[0].reason == "is damaged: logits are not all finite"


def test_a_huge_number_of_rows_is_refused_before_anything_is_allocated(run):
    rows = 2**40

    def grow(shard):
        for name, tail in {"index": (), "label": (), "features": (3,), "logits": (2,)}.items():
            kind = shard[name].dtype
            del shard[name]
            shard.create_dataset(
                name, shape=(rows, *tail), dtype=kind, chunks=(1024, *tail), fletcher32=True
            )
        del shard["path"]
        kind = h5py.string_dtype("utf-8", 8)
        shard.create_dataset("path", shape=(rows,), dtype=kind, chunks=(1024,), fletcher32=True)

    def change(content):
        entry = content["sets"]["digits"]
        entry["rows"], entry["failed"] = rows, []
        del entry["passes"][PASS], entry["passes"]["base"][1]
        entry["passes"]["base"][0] |= {"stop": rows, "rows": rows}
        content["passes"] = {}

    rebuild(run, BASE, grow)
    alter(run, change)
    refused(run, "it declares .* bytes, and has")


# Files of arrays


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"weight": np.ones((2, 4), np.float32)}, "expected .*got"),
        ({"weight": np.ones((2, 3))}, "expected"),
        ({"weights": np.ones((2, 3), np.float32)}, "expected"),
        (None, "is damaged: .*[Hh]eader"),
    ],
)
def test_a_last_layer_of_other_arrays_is_refused(run, arrays, match):
    from safetensors.numpy import save

    (run / "head.safetensors").write_bytes(b"\xff" * 20 if arrays is None else save(arrays))
    accept(run, "head.safetensors")
    refused(run, match)


# run.json


def delete(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def put(value, *keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


SHARD = ("sets", "digits", "passes", "base", 0)
CONFIDENCES = {
    **{"name": "mahalanobis-x", "kind": "mahalanobis", "parameters": [], "rules": {}},
    **dict.fromkeys(("target", "temperature", "p", "gradients")),
    "details": {"fit": "x", "magnitude": 0.0, "stages": {"block1": "block1"}},
}
SAID = {
    "confidences of no fit": put(CONFIDENCES, "passes", "mahalanobis-x"),
    "nothing of the model": delete("model"),
    "nothing of a shard's rows": delete(*SHARD, "rows"),
    "more": put(1, "more"),
    "more of a shard": put(1, *SHARD, "more"),
    "a list as model": put(["digits"], "model"),
    "true as classes": put(True, "classes"),
    "text as rows": put("20", "sets", "digits", "rows"),
    "a fraction of rows": put(9.5, *SHARD, "rows"),
    "more rows than numbers": put(10**30, "sets", "digits", "rows"),
    "fewer rows than none": put(-1, *SHARD, "start"),
    "no classes": put(0, "classes"),
    "no image": put([], "input_shape"),
    "another file": put("../../outside", *SHARD, "file"),
    "a system file": put("/etc/passwd", *SHARD, "file"),
    "another shard's file": put("digits/base/shard-00001.h5", *SHARD, "file"),
    "the batch size": put(0, *SHARD, "settings", "batch_size"),
    "the group": put(["absent"], "groups", "last"),
    "the columns": put(["absent"], "passes", PASS, "parameters"),
    "the kind": put("strange", "passes", PASS, "kind"),
    "no order": put(None, "passes", PASS, "p"),
    "an order below zero": put(-1.0, "passes", PASS, "p"),
    "a role": put("judge", "sets", "digits", "role"),
    "class names": put(["one"], "class_names"),
    "an object as failed": put({}, "sets", "digits", "failed"),
    "a failed image beyond": put(99, "sets", "digits", "failed", 0, "index"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_no_run_could_say_is_refused(run, name):
    alter(run, SAID[name])
    refused(run, r"run\.json is damaged: ")


@pytest.mark.parametrize(
    "name", ["../outside", "/etc", "run.json", "fits", "a/b", "", "a~b", ".."]
)
def test_names_that_lead_elsewhere_are_refused(run, name):
    def rename(content):
        entry = content["sets"].pop("digits")
        content["sets"][name] = entry | {"name": name, "passes": {}}

    alter(run, rename)
    refused(run, r"run\.json is damaged: .*name")


def test_a_fit_whose_name_leads_elsewhere_is_refused(run):
    fit = {"name": "../../x", "method": "mahalanobis", "sets": {}, "settings": {}}
    put({"../../x": fit | {"notice": "", "sha256": "0"}}, "fits")(content := says(run))
    say(run, content)
    refused(run, r"run\.json is damaged: expected fit")


TEXTS = {
    "no JSON": "not json",
    "a list": '["checksum",\n"checksum": "{}"\n}}\n',
    "deep": '{{"format": ' + "[" * 100_000 + "]" * 100_000 + ',\n "checksum": "{}"\n}}\n',
    "not a number": '{{"format": NaN,\n "checksum": "{}"\n}}\n',
    "without end": '{{"format": 2, "classes": 1e999,\n "checksum": "{}"\n}}\n',
    "digits without end": '{{"format": ' + "9" * 5000 + ',\n "checksum": "{}"\n}}\n',
    "twice": '{{"format": 2, "format": 2,\n "checksum": "{}"\n}}\n',
    "true": '{{"format": true,\n "checksum": "{}"\n}}\n',
    "no format": '{{"model": "x",\n "checksum": "{}"\n}}\n',
    "empty": "",
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_run_is_one_line(run, name):
    (run / "run.json").write_bytes(sign(TEXTS[name].format("0" * 64)))
    with pytest.raises(RunError, match=r"run.json (is damaged|; it was)|Expected a run of format"):
        RunStore(run)
    shown = json.dumps(says_or_nothing(run))
    assert shown


def says_or_nothing(run):
    try:
        return [problem.file for problem in check(run)]
    except RunError as error:
        return str(error)


def test_what_is_no_utf_8_is_one_line(run):
    text = json.dumps({**says(run), "model": "?", "checksum": "0" * 64}, indent=1) + "\n"
    (run / "run.json").write_bytes(sign(text.encode().replace(b'"?"', b'"\xff"')))
    refused(run, "is damaged: it is not UTF-8")


def test_an_endless_index_is_not_read(run):
    os.truncate(run / "run.json", 1 << 40)
    refused(run, "expected at most .* bytes, got 1,099,511,627,776")


# A run that is no longer there


def test_a_run_that_was_moved_is_not_called_recorded(run, tmp_path):
    with RunStore.open_for_writing(run) as store:
        shutil.move(run, tmp_path / "elsewhere")
        with pytest.raises(RunError, match="was moved or removed while it was written"):
            store.save()
        store.close()
    assert not run.exists()
    assert check(tmp_path / "elsewhere") == []


def test_a_run_that_was_removed_after_the_last_write_is_told(run):
    store = RunStore.open_for_writing(run)
    shutil.rmtree(run)
    with pytest.raises(RunError, match="was moved or removed while it was written"):
        store.__exit__(None, None, None)
    assert not run.exists()


def test_a_run_that_was_exchanged_is_left_alone(run, made, tmp_path):
    store = RunStore.open_for_writing(run)
    shutil.move(run, tmp_path / "elsewhere")
    shutil.copytree(made, run)
    with pytest.raises(RunError, match="was moved or removed"):
        store.add_shards("digits", {"base": {"index": np.arange(1)}}, (0, 1))
    store.close()
    assert check(run) == []


# What a run names


@pytest.fixture
def marked(tmp_path, monkeypatch):
    """Return a file that the code of a model would make, and put that model in reach."""
    mark = tmp_path / "executed"
    (tmp_path / "evil_model.py").write_text(
        "import pathlib\n"
        f"pathlib.Path({str(mark)!r}).touch()\n"
        "from gradscore import create_model\n"
        "def build():\n"
        "    model = create_model('digits')\n"
        "    return model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("evil_model", None)
    return mark


SMALL = ["--id", "digits=digits:test", "--limit", "4", "--batch-size", "4", "--workers", "0", "-q"]
KEPT = ["--layers", "last", "--keep", "block4"]
NAMED = "python:evil_model:build"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of the embedded model that kept the input of its last block."""
    run = tmp_path_factory.mktemp("kept") / "run"
    command = ["extract", "--model", "digits", "--run", str(run), *SMALL, *KEPT]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return run


@pytest.mark.parametrize(
    "model",
    [
        NAMED,
        "python:os:system?command=touch%20executed",
        "timm:resnet18?checkpoint_path=evil.pth",
        "timm:resnet18?pretrained_cfg_overlay={'url': 'http://localhost/x'}",
        "torchvision:resnet18?weights=x",
        "hf:someone/something",
        "digits?anything=1",
    ],
)
def test_code_that_a_run_names_is_not_run(kept, tmp_path, marked, model):
    run = shutil.copytree(kept, tmp_path / "run")
    alter(run, put(model, "model"))
    before = (run / "run.json").read_bytes()
    for command in (
        ["extract", "--run", str(run), "-p", "2", "-q"],
        ["score", "--run", str(run), "--layers", "block4"],
        ["score", "--run", str(run), "--layers", "block4", "--model", "digits"],
    ):
        error = CliRunner().invoke(cli, command).exception
        assert isinstance(error, RunError), error
        assert "is built only where you name it, too: add `--model" in str(error) or (
            "Expected the run's model" in str(error)
        )
    assert not marked.exists()
    assert (run / "run.json").read_bytes() == before


def test_code_that_the_user_names_too_is_run(kept, tmp_path, marked):
    run = shutil.copytree(kept, tmp_path / "run")
    alter(run, put(NAMED, "model"))
    asked = ["--run", str(run), "--model", NAMED]
    done = CliRunner().invoke(cli, ["score", *asked, "--layers", "block4"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert marked.exists()
    expected = Run(kept).score("digits", layers="block4")
    assert torch.equal(Run(run, NAMED).score("digits", layers="block4"), expected)
    done = CliRunner().invoke(cli, ["extract", *asked, "-p", "2", "-q"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with pytest.raises(NotRecorded, match=rf"--model {NAMED} --layers"):
        Run(run).score("digits", layers="block1", p=3)


@pytest.mark.parametrize(
    "weights", ["/etc/passwd", "/etc/../etc/passwd", "a/../b.npz", "/dev/zero"]
)
def test_weights_that_a_run_names_are_files_of_weights(kept, tmp_path, weights):
    run = shutil.copytree(kept, tmp_path / "run")
    alter(run, put(weights, "weights"))
    for command in (
        ["extract", "--run", str(run), "-p", "2", "-q"],
        ["score", "--run", str(run), "--layers", "block4"],
    ):
        error = CliRunner().invoke(cli, command).exception
        assert isinstance(error, GradScoreError), error
        assert "Expected" in str(error)


def test_libraries_data_sets_that_a_run_names_are_not_opened(kept, tmp_path, monkeypatch):
    run = shutil.copytree(kept, tmp_path / "run")
    alter(run, put("torchvision:MNIST:test@evil", "sets", "digits", "source"))
    opened = []
    monkeypatch.setattr("gradscore.data.named.open_dataset", opened.append)
    error = CliRunner().invoke(cli, ["extract", "--run", str(run), "-p", "2", "-q"]).exception
    assert isinstance(error, RunError), error
    assert "add `--id digits=torchvision:MNIST:test@evil` if you trust it" in str(error)
    assert opened == []


@pytest.mark.parametrize("source", ["/*/*/*/*.tar", "/srv/[a-z]*/x.parquet"])
def test_folders_that_a_run_only_describes_are_not_searched(kept, tmp_path, monkeypatch, source):
    run = shutil.copytree(kept, tmp_path / "run")
    alter(run, put(source, "sets", "digits", "source"))
    monkeypatch.setattr("glob.glob", None)
    error = CliRunner().invoke(cli, ["extract", "--run", str(run), "-p", "2", "-q"]).exception
    assert isinstance(error, RunError), error
    assert f"add `--id 'digits={source}'` if you trust it" in str(error)


def test_a_source_that_no_path_can_be_is_one_line(kept, tmp_path):
    run = shutil.copytree(kept, tmp_path / "run")
    alter(run, put("a" * 5000, "sets", "digits", "source"))
    error = CliRunner().invoke(cli, ["extract", "--run", str(run), "-p", "2", "-q"]).exception
    assert isinstance(error, GradScoreError), error


@pytest.mark.parametrize("argument", ["checkpoint_path=x.pth", "pretrained_cfg_overlay={}"])
def test_timm_loads_nothing_by_arguments(argument):
    with pytest.raises(
        ModelError, match="takes its weights from `weights='FILE'` alone, not from"
    ):
        create_model(f"timm:resnet18?{argument}", "random")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["evaluate", "-o"], "run.json"),
        (["evaluate", "-o"], "../run/run.json"),
        (["ablate", "p", "-o"], "RUN.JSON"),
        (["score", "-o"], "digits/scores.csv"),
        (["score", "-o"], "digits/base/scores.parquet"),
        (["ablate", "p", "--plot"], "fits/p.png"),
    ],
)
def test_results_do_not_take_the_place_of_a_runs_files(run, command, name):
    (run / "fits").mkdir()
    before = (run / "run.json").read_bytes()
    error = CliRunner().invoke(cli, [*command, str(run / name), "--run", str(run)]).exception
    assert isinstance(error, RunError), error
    assert f"it would be among the files of the run {run}" in str(error)
    assert (run / "run.json").read_bytes() == before


def test_a_result_may_lie_beside_a_runs_files(run):
    command = ["score", "--run", str(run), "-q", "-o", str(run / "scores.csv")]
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert check(run) == []


# Pictures that changed


def pictures(folder, changed=()):
    folder.mkdir(exist_ok=True)
    for number in range(6):
        seed = 100 * (number in changed) + number
        grey = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(grey).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    "asked",
    [
        {"layers": "all"},
        {"layers": "last", "keep": ("4",)},
        {"layers": "last", "record": "odin", "epsilon": (0.1,)},
        {"layers": "all", "gradients": "reference"},
    ],
    ids=["norms", "keep", "odin", "reference"],
)
def test_pictures_that_changed_between_two_passes_are_refused(tmp_path, asked):
    folder, run = pictures(tmp_path / "pictures"), tmp_path / "run"
    sets = {"mine": (None, folder)}
    how = {"batch_size": 4, "shard_rows": 2}
    extract(make_model(), sets, run, layers="last", **how)
    pictures(folder, changed=(4,))
    with pytest.raises(DataError, match=r"4.png \(image 4 of mine\) is not the picture that was"):
        extract(make_model(), sets, run, **asked, **how)
    assert check(run) == []
    pictures(folder)
    store = extract(make_model(), sets, run, **asked, **how).store
    (name,) = store.info.passes.keys() - {"blocks"}
    assert store.sets["mine"].complete(name)
    assert check(run) == []
