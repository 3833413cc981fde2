"""The command line as a user meets it: what it prints, what it writes, how it fails."""

import csv
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import call, child, fails, forked
from helpers.recorded_run import make_run
from PIL import Image

from gradscore.cli import cli
from gradscore.data import open_set
from gradscore.data.manifest import SUFFIXES
from gradscore.recorded import extract
from gradscore.run import RunStore

DIGITS = ("digits", "unseen", "photos", "noise")


@pytest.fixture(scope="module")
def run(embedded, tmp_path_factory):
    """Return the directory of a run of the embedded default."""
    return shutil.copytree(embedded, tmp_path_factory.mktemp("cli") / "run")


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_command_has_help(capsys):
    for name, command in cli.commands.items():
        assert command.get_short_help_str(limit=60)[-1] == ".", name
        assert call(name, "--help") == 0
        for inner in getattr(command, "commands", ()):
            assert call(name, inner, "--help") == 0
    assert "Usage:" in capsys.readouterr().out


def test_score_writes_one_row_an_image(run, tmp_path, capsys):
    assert call("score", "--run", run, "--layers", "block4", "-o", tmp_path / "s.csv") == 0
    rows = read_csv(tmp_path / "s.csv")
    assert list(rows[0]) == ["set", "path", "label", "predicted", "gradnorm"]
    assert {row["set"] for row in rows} == set(DIGITS)
    assert all(float(row["gradnorm"]) > 0 for row in rows)
    assert f"{len(rows):,} images" in capsys.readouterr().err


def test_the_mean_over_a_single_ood_set_is_written_but_not_printed(run, tmp_path, capsys):
    asked = ("--run", run, "--method", "msp", "--set", "digits", "--set", "noise")
    assert call("evaluate", *asked, "-o", tmp_path / "e.csv") == 0
    shown = capsys.readouterr().out
    assert "noise" in shown
    assert "mean" not in shown
    assert [row["ood"] for row in read_csv(tmp_path / "e.csv")] == ["noise", "mean"]
    assert call("evaluate", *asked, "--set", "photos") == 0
    assert "mean" in capsys.readouterr().out


def test_repeated_settings_are_each_answered(run, tmp_path):
    asked = ("--run", run, "--method", "u", "--method", "msp", "-p", "1", "-p", "2")
    assert call("score", *asked, "-T", "4", "-T", "1", "-o", tmp_path / "s.csv") == 0
    columns = list(read_csv(tmp_path / "s.csv")[0])
    assert columns[4:] == ["u[p=1]", "u[p=2]", "msp[T=4]", "msp[T=1]"]
    for command in (("evaluate", *asked), ("compare", *asked[2:], run)):
        assert call(*command, "-o", tmp_path / "e.csv", "--quiet") == 0
        rows = [row for row in read_csv(tmp_path / "e.csv") if row["ood"] == "mean"]
        assert [(row["method"], row["p"]) for row in rows] == [("u", "1"), ("u", "2"), ("msp", "")]
    layers = ("--layers", "block4", "--layers", "last", "--target", "uniform")
    assert call("score", "--run", run, *layers, "-o", tmp_path / "l.csv") == 0
    assert list(read_csv(tmp_path / "l.csv")[0])[4:] == [
        "gradnorm[layers=block4]",
        "gradnorm[layers=last]",
    ]


def test_score_shows_a_summary_without_an_output(run, capsys):
    assert call("score", "--run", run, "--set", "digits", "--method", "u", "--method", "msp") == 0
    shown = capsys.readouterr().out
    assert "median" in shown
    assert "digits" in shown
    assert "unseen" not in shown


def test_evaluate_prints_the_accuracy_first_and_writes_every_method(run, tmp_path, capsys):
    assert call("evaluate", "--run", run, "-o", tmp_path / "e.json", "--quiet") == 0
    first = capsys.readouterr().out.splitlines()[0]
    percent = re.fullmatch(r"ID accuracy: (\d+\.\d)% of 361 labelled images", first)[1]
    accuracy = float(percent) / 100
    result = json.loads((tmp_path / "e.json").read_text())
    assert result["id_accuracy"] == {"digits": pytest.approx(accuracy, abs=1e-3)}
    assert accuracy > 0.95
    methods = {row["method"] for row in result["rows"]}
    assert {"gradnorm", "u", "v", "kl", "msp", "max_logit", "energy"} <= methods
    of_msp = [row for row in result["rows"] if row["method"] == "msp"]
    assert [row["ood"] for row in of_msp] == ["unseen", "photos", "noise", "mean"]
    assert of_msp[-1]["auroc"] == pytest.approx(np.mean([row["auroc"] for row in of_msp[:-1]]))
    assert all(row["auroc_low"] <= row["auroc"] <= row["auroc_high"] for row in of_msp)


@pytest.mark.parametrize("kind", ["layers", "p", "temperature", "target", "decomposition", "kl"])
def test_ablations_print_and_write_a_table(run, tmp_path, capsys, kind):
    assert call("ablate", kind, "--run", run, "-o", tmp_path / "a.csv") == 0
    rows = read_csv(tmp_path / "a.csv")
    assert len(rows) % 4 == 0
    assert "mean" in capsys.readouterr().out


def test_compare_puts_runs_side_by_side(run, tmp_path):
    assert call("compare", run, run, "--method", "msp", "-o", tmp_path / "c.csv") == 0
    rows = read_csv(tmp_path / "c.csv")
    assert len(rows) == 8
    assert {row["model"] for row in rows} == {"digits"}


def test_a_second_extract_adds_a_pass_to_the_runs_own_sets(run, tmp_path, capsys):
    message = fails(capsys, "score", "--run", run, "--layers", "block4", "-p", "2")
    assert "gradscore extract" in message
    assert "-p 2" in message
    assert call("extract", "--run", run, "-p", "2", "--quiet") == 0
    assert call("score", "--run", run, "--layers", "block4", "-p", "2") == 0


def test_recorded_methods_stand_beside_the_others(tmp_path, capsys):
    sets = (
        "--id",
        "digits=digits:test",
        "--ood",
        "noise=digits:noise",
        "--data",
        "t=digits:train",
    )
    how = ("--run", tmp_path / "run", "--limit", 40, "--layers", "last")
    assert call("extract", "--model", "digits", *sets, *how) == 0
    capsys.readouterr()
    lacking = fails(capsys, "score", "--run", tmp_path / "run", "--method", "odin", "--epsilon", 1)
    assert "--layers last --record odin -T 1000 --epsilon 1`" in lacking
    more = ("--record", "odin", "--epsilon", 0.01, "--record", "mahalanobis", "--fit", "t")
    assert call("extract", *how, *more) == 0
    assert "t: 40 labelled images, fewer than 1000: 20 fit" in capsys.readouterr().err
    asked = ("--run", tmp_path / "run", "--fit", "t", "--epsilon", 0, "--epsilon", 0.01)
    assert call("evaluate", *asked, "-o", tmp_path / "e.csv") == 0
    assert "Left out lee_alregib. The run holds no gradient norms" in capsys.readouterr().err
    rows = [row for row in read_csv(tmp_path / "e.csv") if row["ood"] == "mean"]
    found = [(row["method"], row["epsilon"], row["fit"]) for row in rows]
    assert ("knn", "", "t") in found
    assert [row for row in found if row[0] in ("odin", "mahalanobis", "mahalanobis_stages")] == [
        ("odin", "0", ""),
        ("odin", "0.01", ""),
        ("mahalanobis", "", "t"),
        ("mahalanobis_stages", "", "t"),
    ]
    assert call("run", "check", tmp_path / "run") == 0
    assert "no damage found in 21 files" in capsys.readouterr().out
    assert call("run", "info", tmp_path / "run") == 0
    assert "mahalanobis_stages-t-" in capsys.readouterr().out


@pytest.fixture
def small_run(tmp_path):
    """Return a run whose directory needs quotes, with limits and a group of its own."""
    path = tmp_path / "my run"
    into = ("--run", path, "--layers", "last", "--quiet")
    model = ("--model", "digits", "--blocks", "begin=stem.*,block1.*")
    assert call("extract", *model, "--id", "a=digits:test", "--limit", 12, *into) == 0
    more = ("--ood", "b=digits:noise", "--data", "t=digits:train", "--limit", 40)
    assert call("extract", *more, *into) == 0
    return path


@pytest.mark.parametrize(
    "asked",
    [
        ("--layers", "begin"),
        ("--layers", "block2.*, block3.conv?.*", "-p", "inf", "-T", "0.5", "--target", "one-hot"),
        ("--method", "odin", "--epsilon", "0.01"),
        ("--method", "mahalanobis_stages", "--fit", "t"),
        ("--method", "lee_alregib", "--fit", "a,b"),
    ],
    ids=" ".join,
)
def test_the_command_in_a_message_can_be_pasted(small_run, capsys, asked):
    question = ("score", "--run", small_run, *asked)
    advice = fails(capsys, *question).partition("`")[2].rpartition("`")[0]
    program, *words = shlex.split(advice)
    assert program == "gradscore"
    assert call(*words, "--quiet") == 0
    assert call(*question) == 0
    assert {name: e.rows for name, e in RunStore(small_run).sets.items()} == {
        "a": 12,
        "b": 40,
        "t": 40,
    }


def test_a_set_that_a_method_learned_from_is_told_of_where_it_is_judged_too(run, capsys):
    told = "Figures of digits are optimistic: mahalanobis learned from it.\n"
    fitted = ("--run", run, "--method", "mahalanobis", "--method", "msp", "--fit", "digits")
    for command in (("score", *fitted), ("evaluate", *fitted), ("compare", *fitted[2:], run)):
        assert call(*command) == 0
        assert capsys.readouterr().err == told
    assert call("evaluate", *fitted, "--quiet") == 0
    assert call("score", *fitted, "--set", "noise") == 0
    assert capsys.readouterr().err == ""


def test_a_further_pass_keeps_to_the_rows_of_the_run(tmp_path, capsys):
    into = ("--model", "digits", "--run", tmp_path / "r")
    assert call("extract", "--id", "a=digits:test", "--limit", "1", *into) == 0
    assert "1 image in 1 set recorded." in capsys.readouterr().err
    assert call("extract", "-p", "2", *into) == 0


def test_a_further_pass_keeps_to_the_rows_of_each_set(tmp_path):
    into = ("--run", tmp_path / "r", "--layers", "last")
    assert call("extract", "--model", "digits", "--id", "a=digits:test", "--limit", 9, *into) == 0
    assert call("extract", "--ood", "b=digits:noise", "--limit", 3, *into) == 0
    assert call("extract", "--run", tmp_path / "r", "-p", "2") == 0
    sets = RunStore(tmp_path / "r").sets
    assert {name: entry.done("norms-uniform-T1-p2") for name, entry in sets.items()} == {
        "a": 9,
        "b": 3,
    }


def test_run_info_and_check(run, capsys):
    assert call("run", "info", run) == 0
    assert "norms-uniform-T1-p1" in capsys.readouterr().out
    assert call("run", "check", run) == 0
    assert "no damage found in" in capsys.readouterr().out


def test_run_info_fits_a_terminal_and_is_no_wider_than_its_facts_in_a_pipe(
    tmp_path, capsys, monkeypatch
):
    run = make_run(tmp_path / "run")
    with RunStore.open_for_writing(run) as store:
        store.sets["noise"].source = "/data/" + "long/" * 30
        store.save()
    assert call("run", "info", run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(len(line) > 100 for line in lines) == 1
    assert "set noise           ood, /data/long/long" in "\n".join(lines)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    assert call("run", "info", run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert ["noise", "norms-uniform-T1-p1", "25", "of", "25", "0"] in map(str.split, lines)


def test_run_check_names_the_damaged_file(run, tmp_path, capsys):
    broken = tmp_path / "run"
    shutil.copytree(run, broken)
    shard = broken / "photos" / "base" / "shard-00000.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    assert call("run", "check", broken) == 1
    assert "photos/base/shard-00000.h5" in capsys.readouterr().out


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    """Return a run with every kind of pass and of fit, in several shards, one image unreadable."""
    root = tmp_path_factory.mktemp("full")
    images = open_set("digits:train")
    for place in range(24):
        images[place].save(root / f"{place:02}.png")
    (root / "13.png").write_bytes(b"broken")
    rows = [f"{place:02}.png,{images.labels[place]}\n" for place in range(24)]
    (root / "list.csv").write_text("path,label\n" + "".join(rows))
    sets = {"a": ("id", f"{root}/list.csv"), "b": ("ood", "digits:noise")}
    how = {"limit": 24, "batch_size": 8, "shard_rows": 8, "on_error": "skip"}
    path = root / "my run"
    extract("digits", sets, path, record="odin", epsilon=(0.1,), layers="last", **how)
    extract("digits", sets, path, record="mahalanobis", fit="a", layers="last", **how)
    extract("digits", sets, path, keep=("block4",), layers="block3.*,block4.*", **how)
    extract("digits", sets, path, target=("all-ones",), p=(2.0,), gradients="vmap", **how)
    for method in ("mahalanobis", "mahalanobis_stages", "lee_alregib"):
        fitted = ("--method", method, "--fit", "a,b", "--set", "b", "-o", path.parent / "s.csv")
        assert call("score", "--run", path, *fitted) == 0
    assert call("run", "check", path) == 0
    return path


@pytest.mark.parametrize(
    ("pattern", "asked"),
    [
        ("a/base/shard-00001.h5", ("--method", "gradnorm")),
        ("a/odin-*/shard-00000.h5", ("--method", "odin", "--epsilon", "0.1")),
        ("a/mahalanobis-*/shard-00002.h5", ("--method", "mahalanobis_stages", "--fit", "a")),
        ("b/keep-*/shard-00001.h5", ("--layers", "block4", "-p", "2")),
        ("b/norms-uniform-*/shard-00001.h5", ("--layers", "block3.*")),
        ("a/norms-all-ones-*/shard-00001.h5", ("--method", "lee_alregib", "--fit", "a,b")),
        ("fits/mahalanobis-*", ("--method", "mahalanobis", "--fit", "a")),
        ("fits/mahalanobis_stages-*", ("--method", "mahalanobis_stages", "--fit", "a")),
        ("fits/lee_alregib-a-b-*", ("--method", "lee_alregib", "--fit", "a,b")),
        ("head.safetensors", None),
    ],
)
def test_a_damaged_file_is_made_again_as_the_message_says(
    full_run, tmp_path, capsys, pattern, asked
):
    run = tmp_path / "my run"
    shutil.copytree(full_run, run)
    (file,) = run.glob(pattern)
    question = ("score", "--run", run, *(asked or ()), "--quiet", "-o", tmp_path / "s.csv")
    assert call(*question) == 0
    before = read_csv(tmp_path / "s.csv")
    # Fits made by the question itself would be read in place of what is damaged.
    shutil.rmtree(run)
    shutil.copytree(full_run, run)
    file.write_bytes(file.read_bytes()[:-5])
    assert call("run", "check", run) == 1
    *_, command = capsys.readouterr().out.splitlines()
    if asked:
        told = fails(capsys, *question)
        assert f"{file} is damaged: " in told
        assert f"; delete it, then make it again with `{command.strip()}`." in told
    file.unlink()
    if asked and file.suffix == ".h5":
        assert f"{file} is missing; make it again with `" in fails(capsys, *question)
    program, *words = shlex.split(command)
    assert program == "gradscore"
    assert call(*words) == 0
    assert call("run", "check", run) == 0
    assert call(*question) == 0
    after = read_csv(tmp_path / "s.csv")
    assert len(after) == len(before) == 47
    for row, other in zip(after, before, strict=True):
        assert list(row.values())[:4] == list(other.values())[:4]
        value, expected = (float(list(r.values())[4]) for r in (row, other))
        assert value == pytest.approx(expected, rel=1e-4)


def test_a_damaged_index_of_the_run_is_made_again_with_all(tmp_path, capsys):
    run = tmp_path / "run"
    how = ("--model", "digits", "--id", "a=digits:test", "--limit", 5, "--layers", "last")
    assert call("extract", "--run", run, *how, "--quiet") == 0
    (run / "run.json").write_bytes((run / "run.json").read_bytes()[:-9])
    told = fails(capsys, "score", "--run", run)
    assert f"{run}/run.json is damaged: it does not end in its checksum; delete it, then" in told
    assert f"`gradscore extract --run {run} --model SPEC --id NAME=PATH" in told
    (run / "run.json").unlink()
    assert call("extract", "--run", run, *how) == 0
    assert call("run", "check", run) == 0


def test_layers_lists_groups_and_rules(capsys, tmp_path):
    assert call("layers", "-o", tmp_path / "l.csv", "--quiet") == 0
    rows = read_csv(tmp_path / "l.csv")
    assert list(rows[0]) == ["group", "rules", "tensors", "elements"]
    assert rows[-1]["group"] == "all"
    sizes = {row["group"]: int(row["elements"]) for row in rows}
    assert call("layers", "--all", "-o", tmp_path / "p.csv") == 0
    assert f"Wrote {tmp_path}/p.csv." in capsys.readouterr().err
    rows = read_csv(tmp_path / "p.csv")
    assert list(rows[0]) == ["parameter", "group", "rule", "elements"]
    assert sum(int(row["elements"]) for row in rows) == sizes["all"]
    assert call("layers") == 0
    shown = capsys.readouterr().out
    for group in ("stem", "block1", "block4", "last", "all"):
        assert group in shown
    assert call("layers", "--all") == 0
    assert "conv" in capsys.readouterr().out


def test_verify_holds_on_the_embedded_model(capsys, tmp_path):
    assert call("verify", "-p", "1", "-p", "2", "-o", tmp_path / "v.csv") == 0
    rows = read_csv(tmp_path / "v.csv")
    assert {row["p"] for row in rows} == {"1", "2"}
    assert max(float(row["error"]) for row in rows) < 1e-9
    assert "largest relative error" in capsys.readouterr().out


def test_verify_tells_what_one_image_cannot_show_and_fails_on_an_error(capsys, monkeypatch):
    from gradscore.rules import RULES

    assert call("verify", "--limit", "1", "--layers", "last") == 0
    assert (
        "one image does not show whether samples depend on each other" in capsys.readouterr().err
    )
    key, rule = next((key, rule) for key, rule in RULES.items() if rule.name == "linear")
    wrong = replace(rule, norms=lambda *args: rule.norms(*args) * 1.01)
    monkeypatch.setitem(RULES, key, wrong)
    assert call("verify", "--layers", "last") == 1
    shown = capsys.readouterr()
    assert "Some error is above the tolerance of 1e-08" in shown.err
    assert "one image" not in shown.err


def test_demo_says_at_each_step_what_it_did_by_which_command(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert call("demo", "-o", folder) == 0
    shown = capsys.readouterr().out
    steps = re.findall(rf"^(\d)\. .*:\n   gradscore (\w+) --run {folder}/run(.*)$", shown, re.M)
    commands = ["extract", "choose", "evaluate", "calibrate", "score", "report"]
    assert [step[:2] for step in steps] == [(str(k), c) for k, c in enumerate(commands, 1)]
    assert "ID accuracy: 99.2% of 361 labelled images" in shown
    assert "Recommended: laplace_energy_blocks" in shown
    assert "With 95% confidence at most 5% of images like these are flagged" in shown
    assert len(shown.splitlines()) < 45
    written = {path.name for path in folder.iterdir()}
    files = {"scores.csv", "scores.png", "evaluation.csv", "detector.safetensors", "report.html"}
    assert written == {"run", *files}
    for _, command, words in steps[2:5]:
        given = shlex.split(words.replace(str(folder), str(tmp_path)))
        assert call(command, "--run", folder / "run", *given, "-q") == 0
    for name in ("scores.csv", "scores.png", "evaluation.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_score_and_evaluate_draw_figures(run, tmp_path, capsys):
    how = ("--run", run, "--method", "msp", "--set", "digits", "--set", "noise")
    assert call("score", *how, "--plot", tmp_path / "s.svg", "-o", tmp_path / "s.csv") == 0
    assert call("evaluate", *how, "--plot", tmp_path / "r.png") == 0
    assert "<svg" in (tmp_path / "s.svg").read_text()
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert captured.err.count("Wrote ") == 3
    assert len(read_csv(tmp_path / "s.csv")) == 861
    assert call("score", *how, "-o", tmp_path / "t.csv", "-q") == 0
    assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "s.csv").read_bytes()


class TestMistakes:
    """Each mistake is one clear line, without a traceback; nothing finished is lost."""

    def test_no_run(self, capsys, tmp_path):
        assert "No run in" in fails(capsys, "score", "--run", tmp_path / "absent")

    def test_unknown_method(self, run, capsys):
        message = fails(capsys, "score", "--run", run, "--method", "magic")
        assert "gradnorm" in message
        assert "magic" in message

    def test_unknown_set(self, run, capsys):
        assert "photos" in fails(capsys, "score", "--run", run, "--set", "absent")

    def test_option_that_no_method_honours(self, run, capsys):
        message = fails(capsys, "score", "--run", run, "--method", "max_logit", "-p", "2")
        assert "honours p" in message

    def test_recording_options_without_their_method(self, run, capsys):
        words = fails(capsys, "extract", "--run", run, "--epsilon", 0.1)
        assert "Expected epsilon with record odin only" in words
        words = fails(capsys, "extract", "--run", run, "--fit", "digits")
        assert "Expected fit with record mahalanobis only" in words
        words = fails(capsys, "evaluate", "--run", run, "--method", "msp", "--epsilon", 0.1)
        assert "None of the chosen methods (msp) honours epsilon" in words

    @pytest.mark.parametrize("p", ["0", "-1", "nan", "two"])
    def test_order_out_of_range(self, run, capsys, p):
        message = fails(capsys, "score", "--run", run, "-p", p, code=2)
        assert "positive number" in message

    def test_unknown_ending(self, run, capsys, tmp_path):
        assert ".parquet" in fails(capsys, "score", "--run", run, "-o", tmp_path / "s.xls")

    def test_output_folder_absent(self, run, capsys, tmp_path):
        message = fails(capsys, "evaluate", "--run", run, "-o", tmp_path / "no" / "e.csv", "-q")
        assert "Cannot write" in message

    def test_output_that_cannot_be_written(self, run, capsys, monkeypatch, tmp_path):
        def refuse(final):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr("gradscore.files._beside", refuse)
        message = fails(capsys, "score", "--run", run, "-o", tmp_path / "s.csv")
        assert "Read-only file system" in message

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--model", "magic:net"], "magic:net"),
            (["--model", "timm:resnet1818"], "resnet18"),
            (["--model", "cifar:resnet20"], "--weights"),
            (["--model", "cifar:resnet20", "--weights", "absent.pth"], "absent.pth"),
        ],
    )
    def test_model_or_weights_unknown(self, capsys, tmp_path, arguments, words):
        message = fails(
            capsys, "extract", *arguments, "--id", "a=digits:test", "--run", tmp_path / "r"
        )
        assert words in message

    def test_no_sets(self, capsys, tmp_path):
        message = fails(
            capsys, "extract", "--model", "cifar:resnet20", "--run", tmp_path / "r", code=2
        )
        assert "--id" in message

    def test_a_file_where_the_run_should_be(self, capsys, tmp_path):
        (tmp_path / "file").write_text("x")
        assert "directory" in fails(capsys, "extract", "-q", "--run", tmp_path / "file")

    def test_sets_without_a_model(self, capsys, tmp_path):
        sets = ("--id", "a=digits:test", "--run", tmp_path / "r")
        assert "--model" in fails(capsys, "extract", *sets, code=2)

    def test_a_model_of_other_channels_into_the_run(self, run, capsys):
        model = ("--model", "cifar:resnet20", "--weights", "random")
        message = fails(capsys, "extract", "-q", *model, "--data", "x=digits:test", "--run", run)
        assert "cifar:resnet20" in message
        assert "digits" in message

    def test_paths_that_are_no_set(self, capsys, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / "list.csv").write_text("path,label\n../secret.png,0\n")
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "a.png").write_bytes(b"not a picture")
        for name, word in [
            ("absent", "absent"),
            ("empty", "empty"),
            ("list.csv", "../secret.png"),
            ("broken", "a.png"),
        ]:
            path = tmp_path / name
            into = ("--model", "digits", "--run", tmp_path / "r")
            message = fails(capsys, "extract", "--id", f"x={path}", *into)
            assert word in message

    def test_another_model_into_the_run(self, run, capsys):
        message = fails(
            capsys,
            *("extract", "-q", "--model", "digits", "--weights", "random"),
            *("--data", "x=digits:test", "--run", run),
        )
        assert "weights_sha256" in message

    def test_a_broken_image_is_skipped_when_asked(self, capsys, tmp_path):
        folder = tmp_path / "images"
        folder.mkdir()
        Image.new("L", (8, 8), 100).save(folder / "good.png")
        (folder / "bad.png").write_bytes(b"not a picture")
        into = ("--model", "digits", "--run", tmp_path / "r")
        assert call("extract", "--data", f"x={folder}", "--on-error", "skip", *into) == 0
        assert "bad.png" in capsys.readouterr().err


def test_a_model_beside_the_user_is_found_and_its_preprocessing_told(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.AvgPool2d(56), nn.Flatten(), nn.Linear(48, 6))\n"
    )
    words = ["extract", "--model", "python:mine:make", "--id", "a=digits:test", "--limit", "2"]
    code, _, error = forked(*words, cwd=tmp_path)
    assert code == 0, error
    assert "python:mine:make: resize 256, crop 224, mean [0.485, 0.456, 0.406]" in error
    _, shown, _ = forked("run", "info", cwd=tmp_path)
    assert "of the factory itself" in shown
    assert "pretrained" not in shown


def test_the_formats_of_sets_are_in_the_help(capsys):
    assert call("extract", "--help") == 0
    shown = capsys.readouterr().out
    for word in (
        *SUFFIXES,
        ".npz",
        "images [n, h, w, c] or [n, c, h, w], uint8",
        "columns path, label",
        "LIST@",
    ):
        assert word in shown


def test_exit_codes_of_a_real_process():
    command = [sys.executable, "-c", "from gradscore.cli import main; main()"]
    wrong = subprocess.run([*command, "score", "--run", "absent"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("Error: No run in absent")
    usage = subprocess.run([*command, "score", "--nonsense"], capture_output=True, text=True)
    assert usage.returncode == 2


def test_in_a_pipe_nothing_is_cut_whatever_columns_says(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    code, shown, _ = forked("evaluate", "--full", "--run", run, "--method", "msp")
    assert code == 0
    (row,) = (line.split() for line in shown.splitlines() if "msp" in line)
    assert len(row) == 1 + 2 * len(("noise", "photos", "unseen", "mean"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("buffering", [-1, 0])
@pytest.mark.parametrize("words", ["layers", "--help"])
def test_an_output_that_takes_nothing_is_one_line(words, buffering):
    with open("/dev/full", "wb") as full:
        code, _, error = forked(words, stdout=full.fileno(), buffering=buffering)
    expected = "Error: Cannot write to standard output: No space left on device.\n"
    assert (code, error) == (1, expected)
    code, _, error = forked(words, closed=(1,), buffering=buffering)
    expected = "Error: Expected an open standard output, got a closed one.\n"
    assert (code, error) == (1, expected)
    reading, writing = os.pipe()
    os.close(reading)
    code, _, error = forked(words, stdout=writing, buffering=buffering)
    os.close(writing)
    assert error == ""
    assert code in (0, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_that_takes_nothing_is_one_line_of_a_process(unbuffered):
    program = f"{sys.executable} -c 'from gradscore.cli import main; main()' --help"
    for target, told in (
        ("/dev/full", "Error: Cannot write to standard output: No space left on device.\n"),
        ("&-", "Error: Expected an open standard output, got a closed one.\n"),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{program} >{target}"],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert (done.returncode, done.stderr) == (1, told)


def test_python_runs_the_package():
    command = [sys.executable, "-m", "gradscore", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "version" in done.stdout


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_resumes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6000, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "many.npz", images=images, labels=np.zeros(6000, int))
    into = ["--model", "digits", "--run", str(tmp_path / "r")]
    arguments = ["extract", "--data", f"many={tmp_path}/many.npz", *into]
    with child(*arguments) as (pid, errors):
        deadline = time.monotonic() + 120
        while not list((tmp_path / "r").glob("many/base/*.h5")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(pid, signal.SIGINT)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        errors.seek(0)
        error = errors.read().decode()
    if code:
        assert code == 130
        assert "Interrupted" in error
        assert "Traceback" not in error
    assert call(*arguments) == 0
    assert call("run", "check", tmp_path / "r") == 0
