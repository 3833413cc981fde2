"""Format 1 is read for ever, and only read; what format 2 brings is written, read and shown."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from helpers.hostile_run import PASS, accept, alter, refusals, sound_run

from gradscore.cli import cli
from gradscore.errors import RunError
from gradscore.evaluation import choose_sets, evaluate_run
from gradscore.methods import ScoreSpec
from gradscore.recorded import Run, extract
from gradscore.run import PassInfo, RunStore, SetInfo, check

OLD = Path(__file__).parent / "runs" / "format-1"
SCORES = {
    ("digits", "last"): [51.959873, 47.748924, 50.378572],
    ("unseen", "block4"): [1863.047398, 1570.443904, 1822.737454],
}
MAHALANOBIS = [-17.202392, -20.505175, -3.421694]


@pytest.fixture
def old(tmp_path):
    return shutil.copytree(OLD, tmp_path / "old run")


def test_a_run_of_format_1_is_read_and_scored_as_it_was():
    assert check(OLD) == []
    run = Run(OLD)
    about = run.store.info
    assert (about.format, about.class_names) == (1, None)
    for (name, layers), expected in SCORES.items():
        scores = run.score(name, "gradnorm", layers=layers)
        np.testing.assert_allclose(scores[: len(expected)], expected, rtol=1e-5)
    stored = run.score("unseen", "mahalanobis", fit="digits")
    np.testing.assert_allclose(stored[:3], MAHALANOBIS, rtol=1e-5)
    evaluation = evaluate_run(run, [ScoreSpec("gradnorm")], replicates=0)
    assert [accuracy.share for accuracy in evaluation.accuracies.values()] == [1.0]
    assert evaluation.rows[0]["auroc"] == 1.0


def test_a_run_of_format_1_is_not_written_and_the_way_out_is_told(old):
    before = sorted((path, path.read_bytes()) for path in old.rglob("*") if path.is_file())
    way = (
        f"`gradscore extract --run '{old}-2' --model digits --id digits=digits:test "
        "--ood unseen=digits:unseen`"
    )
    for write in (
        lambda: RunStore.open_for_writing(old),
        lambda: extract("digits", {"digits": ("id", "digits:test")}, old, limit=8),
    ):
        with pytest.raises(RunError, match="Expected a run of format 2 to add to, got format 1"):
            write()
        with pytest.raises(RunError) as refusal:
            write()
        assert way in str(refusal.value)
    done = CliRunner().invoke(cli, ["score", "--run", str(old), "--method", "msp"])
    assert done.exit_code == 0, done.output
    after = sorted((path, path.read_bytes()) for path in old.rglob("*") if path.is_file())
    assert after == before


def test_what_format_1_did_not_know_is_refused_in_it(old):
    def surrogate(content):
        content["sets"]["unseen"]["role"] = "surrogate"

    for change in (surrogate, lambda content: content.update(class_names=None)):
        run = shutil.copytree(OLD, old.with_name("changed"), dirs_exist_ok=True)
        alter(run, change)
        problems, error = refusals(run)
        assert [problem.file for problem in problems] == ["run.json"]
        assert "run.json is damaged: expected" in str(error)


def test_what_format_2_brings_comes_back(tmp_path):
    run = sound_run(tmp_path / "run")
    blocks = {"block1": np.ones((2, 4), np.float32), "block2": np.zeros((2, 3), np.float32)}
    with RunStore.open_for_writing(run) as store:
        store.info.class_names = ("cat", "dog")
        store.add_set(SetInfo("train", "fit", "x", "0" * 64, 2))
        store.add_set(SetInfo("digits~shuffle4", "surrogate", "digits", "0" * 64, 2))
        channels = {name: values.shape[1] for name, values in blocks.items()}
        store.add_pass(PassInfo("blocks", "blocks", details={"channels": channels}))
        index = np.arange(2)
        base = {
            "index": index,
            "path": np.array(["a", "b"], dtype=object),
            "label": index,
            "features": np.zeros((2, 3), np.float32),
            "logits": np.zeros((2, 2), np.float32),
        }
        for name in ("train", "digits~shuffle4"):
            content = {"base": base, "blocks": {"index": index, **blocks}}
            store.add_shards(name, content, (0, 2))
    store = RunStore(run)
    assert store.info.class_names == ("cat", "dog")
    assert store.sets["digits~shuffle4"].role == "surrogate"
    (block,) = store.blocks("train", fields=("index",), norms=["blocks"])
    np.testing.assert_array_equal(block["blocks/block1"], blocks["block1"])
    np.testing.assert_array_equal(block["blocks/block2"], blocks["block2"])
    assert check(run) == []
    shown = CliRunner().invoke(cli, ["run", "info", str(run)]).output
    assert "cat, dog" in shown
    assert "fit, x" in shown
    assert "surrogate, digits" in shown
    assert math.isclose(store.info.passes[PASS].p, 1.0)


def test_sets_to_fit_to_and_surrogates_are_no_test_sets(tmp_path):
    run = sound_run(tmp_path / "run")
    with RunStore.open_for_writing(run) as store:
        for name, role in {"train": "fit", "digits~flip": "surrogate", "far": "ood"}.items():
            store.add_set(SetInfo(name, role, "x", "0" * 64, 2))
        store.save()
    assert choose_sets(RunStore(run)) == (["digits"], ["far"])


@pytest.mark.parametrize("name", ["digits~shuffle4", "~", "a~", "~b"])
def test_names_of_surrogates_are_not_the_users(tmp_path, name):
    store = RunStore.open_for_writing(sound_run(tmp_path / "run"))
    with store, pytest.raises(RunError, match="Expected a set name of letters"):
        store.add_set(SetInfo(name, "ood", "x", "0" * 64, 1))
    with pytest.raises(RunError, match="Expected a set name of letters"):
        extract("digits", {name: ("ood", "digits:noise")}, tmp_path / "new")


@pytest.mark.parametrize("name", ["digits", "~x", "digits~", "../a~b", "a~b~c"])
def test_surrogates_are_named_after_a_set(tmp_path, name):
    store = RunStore.open_for_writing(sound_run(tmp_path / "run"))
    with store, pytest.raises(RunError, match="Expected a"):
        store.add_set(SetInfo(name, "surrogate", "x", "0" * 64, 1))


def test_a_fit_that_is_not_of_its_run_is_refused(old):
    from safetensors.numpy import load_file, save

    (file,) = (old / "fits").iterdir()
    arrays = load_file(file)
    for change in (
        {"means": arrays["means"][:, 1:]},
        {"precision": arrays["precision"].astype(np.float32)},
        {"precision": np.full_like(arrays["precision"], np.nan)},
        {"means": arrays["means"][:0]},
    ):
        file.write_bytes(save({**arrays, **change}))
        accept(old, f"fits/{file.name}")
        (problem,) = check(old)
        assert problem.reason == "is damaged: no mahalanobis of this run is like it"
        with pytest.raises(RunError, match="no mahalanobis of this run is like it"):
            Run(old).score("unseen", "mahalanobis", fit="digits")


def test_a_set_to_fit_to_is_recorded_with_its_role(tmp_path):
    run = str(tmp_path / "run")
    how = ["--model", "digits", "--limit", "6", "--batch-size", "6", "--workers", "0", "-q"]
    sets = ["--id", "a=digits:test", "--ood", "b=digits:noise", "--fit-set", "t=digits:train"]
    words = ["extract", *how, *sets, "--run", run, "--layers", "last"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert {name: entry.role for name, entry in RunStore(run).sets.items()} == {
        "a": "id",
        "b": "ood",
        "t": "fit",
    }
    evaluation = evaluate_run(run, [ScoreSpec("mahalanobis", fit="t")], replicates=0)
    assert [(row["id"], row["ood"]) for row in evaluation.rows] == [("a", "b"), ("a", "mean")]
