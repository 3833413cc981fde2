"""``gradscore choose``, and the short table of ``evaluate`` that points to it."""

import json
import re
import shlex
import shutil

import click
import numpy as np
import pytest
from click.testing import CliRunner

from gradscore.choosing.choice import Row
from gradscore.choosing.ranking import Ranked
from gradscore.cli import cli
from gradscore.cli.choosing import _show_table
from gradscore.methods import ScoreSpec
from gradscore.methods.rows import fold_of


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def run(embedded, tmp_path_factory):
    return shutil.copytree(embedded, tmp_path_factory.mktemp("cli") / "run")


def test_choose_shows_both_tables_and_the_command_that_uses_the_choice(run, tmp_path):
    result = invoke("choose", "--run", run, "-o", tmp_path / "choice.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line for line in lines if line in ("far", "near")] == ["far", "near"]
    assert any(line.startswith("Recommended: ") for line in lines)
    threshold, use = (
        line.removeprefix(what)
        for what in ("A threshold for it: ", "A score for every image: ")
        for line in lines
        if line.startswith(what)
    )
    assert threshold == f"gradscore calibrate --run {run}"  # by images that did not choose
    for told, file in ((threshold, "d.safetensors"), (use, "scores.csv")):
        used = invoke(*shlex.split(told)[1:], "-o", tmp_path / file)
        assert used.exit_code == 0, used.output
    held = json.loads((tmp_path / "choice.json").read_text())
    assert held["recommended"]["method"] in use
    assert (run / "fits" / "choice.json").read_bytes() == (tmp_path / "choice.json").read_bytes()
    assert "was left out: the model keeps" in result.stderr
    assert "near table" in result.stderr
    assert "for each group of classes that is taken out of the last layer" in result.stdout
    assert "AUROC in percent: the mean, then for each kind of surrogate" in result.stdout
    assert invoke("run", "check", run).exit_code == 0


@pytest.mark.parametrize(
    ("value", "shown"), [(-0.004, "0.00"), (0.004, "0.00"), (-0.006, "-0.01"), (1.005, "1.00")]
)
def test_a_value_of_nothing_has_no_sign(value, shown):
    ranked = Ranked(0, value, value, value, {"phase": 0.5}, tied=True)
    result = CliRunner().invoke(click.command()(lambda: _show_table("far", [row(ranked)], {})))
    assert f"{shown} [{shown}, {shown}]" in result.output


def row(ranked):
    return Row(ScoreSpec("msp"), ranked)


def test_evaluate_is_one_line_a_method_best_first_and_full_shows_every_set(run, tmp_path):
    short = invoke("evaluate", "--run", run, "-o", tmp_path / "short.csv")
    full = invoke("evaluate", "--run", run, "--full", "-o", tmp_path / "full.csv")
    head, _, *rows = short.stdout.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    assert head.split()[:2] == ["method", "AUROC"]
    methods = [row.split()[0] for row in rows]
    assert len(set(methods)) == len(methods) > 15
    figures = [float(row.split()[1]) for row in rows]
    assert figures == sorted(figures, reverse=True)
    assert "OOD: mean of unseen, photos, noise;" in short.stdout
    for name in ("noise", "photos", "unseen"):
        assert f" {name} " not in "".join((head, *rows))
        assert f" {name} " in full.stdout
    assert (tmp_path / "short.csv").read_bytes() == (tmp_path / "full.csv").read_bytes()


def test_where_gradnorm_ranks_below_msp_choose_is_named(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "fits" / "choice.json").unlink(missing_ok=True)

    def told():
        lines = invoke("evaluate", "--run", copy).stdout.splitlines()
        return [line for line in lines if "below" in line]

    below = "gradnorm ranks below msp here (mean AUROC 94.4 against 96.5). "
    assert told() == [
        f"{below}`gradscore choose --run {copy}` says which score to trust for this model."
    ]
    assert invoke("choose", "--run", copy).exit_code == 0
    assert told() == [f"{below}For this model `gradscore choose` took laplace_energy_blocks."]
    only = invoke("evaluate", "--run", run, "--method", "msp")
    assert "below" not in only.stdout


def test_a_choice_that_the_run_cannot_keep_is_told_of(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "fits" / "choice.json").unlink(missing_ok=True)
    (copy / "fits" / "choice.json").mkdir(parents=True)
    result = invoke("choose", "--run", copy)
    assert result.exit_code == 0
    assert "The run does not keep the choice: Cannot write" in result.stderr
    assert f"A threshold for it: gradscore calibrate --run {copy} --method " in result.stdout


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (200, None),
        (80, "e"),
        (60, "e, d, c, b"),
        (40, "e, d, c, b, a, value"),
    ],
)
def test_a_narrow_choice_leaves_out_shifts_then_the_value(monkeypatch, width, left_out):
    aurocs = dict(zip(("a", "b", "c", "d", "e"), (0.5,) * 5, strict=True))
    ranked = Ranked(0, 3.25, 3.0, 3.5, {f"{k}": v for k, v in aurocs.items()}, tied=True)
    monkeypatch.setattr("gradscore.cli.console.available_width", lambda: width)
    shown = click.command()(lambda: _show_table("far", [row(ranked)], {row(ranked).spec: 0.9}))
    text = CliRunner().invoke(shown).output
    told = re.findall("Too narrow for (.*): a wider terminal", text)
    assert told == ([left_out] if left_out else [])
    assert "OOD sets" in text
    assert "90.0" in text


def test_a_method_that_is_none_of_ones_own_is_a_usage_error(run):
    result = invoke("choose", "--run", run, "--method", "energy")
    assert result.exit_code == 2
    assert "Expected a score of your own as python:MODULE:FUNCTION, got energy" in result.output


def test_copies_within_an_id_set_and_between_id_sets_are_told_of(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (101, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=np.concatenate([pixels, pixels[:5]]))
    np.savez(tmp_path / "b.npz", images=pixels[7:])
    run = tmp_path / "run"
    sets = (
        "--id",
        f"a={tmp_path}/a.npz",
        "--id",
        f"b={tmp_path}/b.npz",
        "--ood",
        "o=digits:noise",
    )
    how = ("--model", "digits", "--layers", "last", "--run", run, "--quiet")
    assert invoke("extract", *sets, *how).exit_code == 0
    told = invoke("evaluate", "--run", run, "--method", "knn").stderr
    folds = fold_of(range(106))
    known = 2 * int((folds[:5] != folds[101:]).sum())
    assert 0 < known < 10
    assert f"{known} images of a are in both of its halves: scores learned from one know" in told
    assert "94 images of a are in b, too: methods that learned from it know them." in told
    assert "94 images of b are in a, too" in told
    notes = invoke("choose", "--run", run).stderr
    assert "images of a are in b, too: methods that learned from it know them" in notes


def test_score_leaves_surrogates_out_unless_named(run):
    assert "digits~" not in invoke("score", "--run", run).stdout
    assert "digits~phase" in invoke("score", "--run", run, "--set", "digits~phase").stdout


def test_a_removed_set_takes_its_surrogates_along(tmp_path):
    how = ("--id", "a=digits:test", "--record", "surrogates", "--layers", "last", "--limit", 20)
    path = tmp_path / "run"
    assert invoke("extract", "--run", path, "--model", "digits", *how).exit_code == 0
    assert (path / "a~phase").exists()
    assert invoke("run", "remove", "a", "--run", path).exit_code == 0
    assert not list(path.glob("a~*/*/*.h5"))


def test_the_same_image_in_fit_and_test_is_told(tmp_path):
    path = tmp_path / "run"
    sets = ("--id", "a=digits:test", "--fit-set", "b=digits:test", "--ood", "c=digits:noise")
    how = ("--run", path, "--model", "digits", "--layers", "last", "--limit", 40)
    assert invoke("extract", *sets, *how).exit_code == 0
    told = invoke("evaluate", "--run", path, "--method", "knn").stderr
    assert "40 images of a are in b, too: methods that learned from it know them." in told
    assert "of c are in b" not in told
    assert "too:" not in invoke("evaluate", "--run", path, "--method", "msp").stderr
