"""A run of one's own features, logits and last layer, and what is refused of them."""

import re
from contextlib import suppress

import numpy as np
import pytest
import torch
from helpers.commands import call, fails
from helpers.recorded_run import drawn_set
from safetensors.numpy import save_file

import gradscore as gs
from gradscore.errors import GradScoreError, InvalidArgument, NotRecorded, RunError
from gradscore.evaluation import evaluate_run
from gradscore.methods import METHODS, make_specs
from gradscore.run import check, import_set

WEIGHT = np.random.default_rng(9).normal(size=(5, 4)).astype(np.float32)
BIAS = np.array([0.5, 0, 0, -1, 0], np.float32)


def arrays(name="digits", **changed):
    drawn = drawn_set(name)
    x = drawn["features"]
    given = {"features": x, "logits": x @ WEIGHT.T + BIAS, "labels": drawn["label"]}
    return given | {"head": {"weight": WEIGHT, "bias": BIAS}} | changed


def bring(path, name="digits", role="id", **changed):
    return import_set(path, name, role, **arrays(name, **changed))


@pytest.fixture
def files(tmp_path):
    """Return the options that name the arrays as files."""
    given = arrays()
    for name in ("features", "logits", "labels"):
        np.save(tmp_path / f"{name}.npy", given[name])
    save_file({"fc.weight": WEIGHT, "fc.bias": BIAS}, tmp_path / "head.safetensors")
    options = {f"--{name}": tmp_path / f"{name}.npy" for name in ("features", "logits", "labels")}
    return options | {"--head": tmp_path / "head.safetensors"}


def test_every_method_of_features_logits_and_head_answers(tmp_path):
    for name, role in (("digits", "id"), ("noise", "ood"), ("photos", "ood"), ("train", "fit")):
        imported = bring(tmp_path / "r", name, role)
        assert (imported.notice, imported.rows) == ("", len(drawn_set(name)["index"]))
    run = gs.Run(tmp_path / "r")
    assert {name: entry.role for name, entry in run.sets.items()}["train"] == "fit"
    answered = set()
    for method in METHODS:
        with suppress(InvalidArgument, NotRecorded):
            evaluate_run(run, make_specs([method]), replicates=0)
            answered.add(method)
    inner = {"laplace_energy_blocks", "mahalanobis", "mahalanobis_stages", "lee_alregib"}
    assert answered == METHODS.keys() - inner
    assert run.score("digits", "mahalanobis", fit="train").shape == (40,)
    x, f = (torch.as_tensor(arrays()[name]) for name in ("features", "logits"))
    torch.testing.assert_close(
        run.score("digits"), gs.last_layer_score(x, f).double(), rtol=2e-6, atol=0
    )
    assert check(tmp_path / "r") == []
    with pytest.raises(NotRecorded, match=r"extract --run .*/r-model --model SPEC --layers all"):
        run.score("digits", "gradnorm", layers="all")


def test_files_arrays_and_tensors_give_the_same_run(tmp_path, files, capsys):
    words = [str(word) for option in files.items() for word in option]
    assert call("run", "import", tmp_path / "a", "--id", "digits", *words) == 0
    assert "set digits, 40 images." in capsys.readouterr().err
    tensors = {name: torch.as_tensor(arrays()[name]) for name in ("features", "logits", "labels")}
    import_set(tmp_path / "b", "digits", "id", head={"weight": WEIGHT, "bias": BIAS}, **tensors)
    one, two = (gs.Run(tmp_path / name) for name in "ab")
    for field in ("features", "logits", "labels", "predicted"):
        assert torch.equal(getattr(one, field)("digits"), getattr(two, field)("digits"))
    assert one.paths("digits")[:2] == ["digits/0", "digits/1"]
    assert one.store.info.weights_sha256 == two.store.info.weights_sha256
    digests = {run.sets["digits"].manifest_sha256 for run in (one, two)}
    assert len(digests) == 1


def test_a_set_without_a_name_is_named_as_its_file(tmp_path, files):
    words = [str(word) for option in files.items() for word in option]
    assert call("run", "import", tmp_path / "r", *words, "-q") == 0
    entry = gs.Run(tmp_path / "r").sets["features"]
    assert (entry.role, entry.rows) == ("id", 40)


def test_the_head_is_needed_once_and_must_be_the_same(tmp_path):
    with pytest.raises(InvalidArgument, match=r"for a new run, got none; give `head='FILE"):
        bring(tmp_path / "r", head=None)
    assert not (tmp_path / "r").exists()
    bring(tmp_path / "r")
    bring(tmp_path / "r", "noise", "ood", head=None)
    x = arrays("photos")["features"]
    with pytest.raises(RunError, match=r"Expected the last layer of the run .*, got another"):
        bring(tmp_path / "r", "photos", "ood", head={"weight": WEIGHT}, logits=x @ WEIGHT.T)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"features": np.ones((40, 6))}, r"weight \[5, 6\] .* got .*weight \[5, 4\]"),
        ({"logits": np.ones((40, 7))}, r"weight \[7, 4\] .* got .*weight \[5, 4\]"),
    ],
    ids=["wider features", "more classes"],
)
def test_without_a_head_that_of_the_run_must_fit(tmp_path, changed, told):
    bring(tmp_path / "r")
    with pytest.raises(InvalidArgument, match=told):
        import_set(tmp_path / "r", "other", "ood", **arrays(head=None, **changed))


def test_what_was_deleted_is_made_again_by_the_command_that_is_named(tmp_path, files):
    words = [str(word) for option in files.items() for word in option]
    run, import_ = tmp_path / "r", ("run", "import", tmp_path / "r")
    assert call(*import_, "--id", "digits", *words, "-q") == 0
    for file, named in (
        ("digits/base/shard-00000.h5", "--id digits"),
        ("head.safetensors", "--head FILE"),
    ):
        (run / file).unlink()
        (problem,) = check(run)
        assert problem.repair == f"`gradscore run import {run} {named} ...`"
        assert call(*import_, "--id", "digits", *words, "-q") == 0
        assert check(run) == []


def test_the_same_set_again_changes_nothing_and_another_is_refused(tmp_path):
    bring(tmp_path / "r")
    before = (tmp_path / "r" / "run.json").read_bytes()
    bring(tmp_path / "r")
    assert (tmp_path / "r" / "run.json").read_bytes() == before
    with pytest.raises(RunError, match=r"holds a set digits of other arrays .* run remove digits"):
        bring(tmp_path / "r", labels=None)


def test_an_interrupted_import_goes_on(tmp_path, monkeypatch):
    from gradscore.run import imported

    monkeypatch.setattr(imported, "ROWS", 16)
    write, calls = imported.RunStore.add_shards, []

    def stopped(self, *how):
        calls.append(how)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(self, *how)

    monkeypatch.setattr(imported.RunStore, "add_shards", stopped)
    with pytest.raises(KeyboardInterrupt):
        bring(tmp_path / "r")
    assert gs.Run(tmp_path / "r").sets["digits"].done("base") == 16
    bring(tmp_path / "r")
    assert np.array_equal(gs.Run(tmp_path / "r").features("digits"), arrays()["features"])


def test_half_precision_is_taken_and_told(tmp_path):
    given = arrays()
    half = {"logits": given["logits"].astype(np.float16), "features": given["features"]}
    imported = bring(tmp_path / "r", **half)
    assert re.search(r"off by up to 0\.0\d% .* half precision rounds", imported.notice)


X, F = arrays()["features"], arrays()["logits"]
BAD = {
    "another layer": ({"logits": F[::-1]}, "row .* is off by .* its bias there"),
    "no bias": ({"head": {"weight": WEIGHT}}, "row .* is off by"),
    "another length": ({"logits": F[:7]}, "same images, one row each, got 40 and 7 rows"),
    "no rows": ({"features": X[:0], "logits": F[:0]}, "got 0 and 0 rows"),
    "three axes": ({"features": X[:, None]}, r"shape \[rows, in_features\], got .*\[40, 1, 4\]"),
    "whole numbers": ({"features": X.astype(int)}, "features as floating-point numbers"),
    "objects": ({"features": X.astype(object)}, "got object of the shape"),
    "one class": ({"logits": F[:, :1]}, "logits of two classes or more"),
    "a head of other sizes": (
        {"head": {"weight": WEIGHT.T}},
        r"weight \[5, 4\] .* got weight \[4, 5",
    ),
    "two biases": (
        {"head": {"weight": WEIGHT, "a": BIAS, "b": BIAS}},
        r"perhaps bias \[5\], .*got weight",
    ),
    "an infinite head": ({"head": {"weight": WEIGHT * np.inf}}, "finite numbers in weight"),
    "nan": (
        {"features": np.where(np.arange(40)[:, None] == 3, np.nan, X)},
        "features .* in row 3",
    ),
    "too large": (
        {"logits": F.astype(float) * 1e300},
        "finite logits in float32, got others in row 0",
    ),
    "labels of classes": ({"labels": np.arange(40)}, "class numbers of 0 to 4, .* got 5 in row 5"),
    "labels below": ({"labels": np.full(40, -2)}, "got -2 in row 0"),
    "fewer labels": ({"labels": np.zeros(3, int)}, r"Expected 40 labels, .* shape \[3\]"),
    "labels of floats": ({"labels": np.zeros(40)}, "one whole number a row, got float64"),
}


@pytest.mark.parametrize("case", BAD)
def test_arrays_that_cannot_be_are_refused_in_a_line(tmp_path, case):
    changed, told = BAD[case]
    with pytest.raises(GradScoreError, match=told) as error:
        bring(tmp_path / "r", **changed)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("option", "content", "told"),
    [
        ("--features", None, "Cannot read .*: No such file"),
        ("--features", b"no array", "Expected features as an .npy file, got .*magic"),
        ("--logits", b"", "Expected logits as an .npy file"),
        ("--head", b"no tensors at all", "Expected a .safetensors file, got"),
        ("--head", None, "Cannot read .*: No such file"),
    ],
)
def test_files_that_are_none_are_one_line(tmp_path, files, capsys, option, content, told):
    bad = tmp_path / "bad"
    if content is not None:
        bad.write_bytes(content)
    words = [str(word) for pair in (files | {option: bad}).items() for word in pair]
    error = fails(capsys, "run", "import", tmp_path / "r", *words)
    assert re.search(told, error)
    assert not (tmp_path / "r").exists()


def test_pickled_arrays_are_never_loaded(tmp_path, files, capsys):
    np.save(tmp_path / "features.npy", X.astype(object), allow_pickle=True)
    words = [str(word) for pair in files.items() for word in pair]
    assert "holds Python objects" in fails(capsys, "run", "import", tmp_path / "r", *words)


def test_the_role_is_said_once_and_a_run_of_a_model_is_left(tmp_path, files, capsys):
    words = [str(word) for pair in files.items() for word in pair]
    two = ("run", "import", tmp_path / "r", "--id", "a", "--ood", "b", *words)
    assert "Expected one of --id, --ood" in fails(capsys, *two, code=2)
    gs.extract("digits", {"a": ("id", "digits:test")}, tmp_path / "m", layers="last", limit=4)
    error = fails(capsys, "run", "import", tmp_path / "m", *words)
    assert "Expected a new run or one made of arrays" in error
