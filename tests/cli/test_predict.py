"""The embedded default from images to decisions: extract, calibrate, predict."""

import csv
import errno
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.commands import call, fails
from PIL import Image

import gradscore as gs
from gradscore.cli import cli
from gradscore.methods import METHODS


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def detector(embedded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    run, file = shutil.copytree(embedded, folder / "run"), folder / "detector.safetensors"
    assert invoke("calibrate", "--run", run, "-o", file, "-q").exit_code == 0
    return file


def test_unseen_digits_are_mostly_flagged_and_called_drift(detector, tmp_path):
    out = tmp_path / "a.csv"
    result = invoke("predict", "digits:unseen", "--detector", detector, "-o", out, "--show", "3")
    assert result.exit_code == 0, result.output
    assert "Flagged 543 of 714 images (76.1%; 95% interval 72.7% to 79.1%)." in result.stdout
    assert "these images have drifted" in result.stdout
    with open(out, newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 714
    assert sum(row["accepted"] == "false" for row in rows) == 543
    lowest = sorted(rows, key=lambda row: float(row["score"]))[:3]
    shown = [line.split() for line in result.stdout.splitlines()]
    assert [words[0] for words in shown if words and words[0].startswith("digits/")] == [
        row["path"] for row in lowest
    ]


def test_drift_fails_only_where_that_is_asked(detector, capsys):
    words = ("--detector", detector, "--show", "0", "-q")
    told = fails(capsys, "predict", "digits:unseen", *words, "--fail-on-drift")
    assert told.startswith("Error: Drift: Flagged 543 of 714")
    assert call("predict", "digits:test", *words, "--fail-on-drift") in (0, None)


def pictures(folder, count=70):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{k:03}.png")
    return folder


def fingerprints(folder):
    return {
        file.name: (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in folder.iterdir()
    }


def test_folders_of_the_user_stay_as_they_are(detector, tmp_path):
    folder = pictures(tmp_path / "new")
    before = fingerprints(folder)
    result = invoke("predict", folder, folder, "--detector", detector, "--workers", "0")
    assert result.exit_code == 0, result.output
    assert "of 140 images" in result.stdout
    assert fingerprints(folder) == before


def test_an_interrupt_keeps_what_is_written(detector, tmp_path, monkeypatch, capsys):
    from gradscore.detector import prediction

    whole, out = prediction.predict_images, tmp_path / "a.csv"

    def interrupted(*arguments, **how):
        yield next(iter(whole(*arguments, **how)))
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction, "predict_images", interrupted)
    code = call("predict", "digits:unseen", "--detector", detector, "-o", out, "--workers", "0")
    assert code == 130
    told = capsys.readouterr().err
    assert "holds the first 64 images" in told
    assert told.endswith("Interrupted. The same command begins again.\n")
    assert len(out.read_text().splitlines()) == 65


@pytest.mark.parametrize("command", ["predict", "calibrate", "export"])
def test_an_interrupt_before_any_work_does_not_promise_to_resume(
    detector, tmp_path, monkeypatch, capsys, command
):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    words = {
        "predict": ("digits:unseen", "--detector", detector),
        "calibrate": ("--run", detector.parent / "run", "-o", tmp_path / "d.safetensors"),
        "export": ("--detector", detector, "-o", tmp_path / "gate.onnx"),
    }
    module = {"export": "detector", "predict": "file", "calibrate": "file"}[command]
    name = "check_ending" if command == "calibrate" else "read_detector"
    monkeypatch.setattr(f"gradscore.detector.{module}.{name}", interrupted)
    assert call(command, *words[command]) == 130
    assert capsys.readouterr().err.endswith("Interrupted. The same command begins again.\n")


def test_rows_that_could_not_be_written_are_not_said_to_be_there(
    detector, tmp_path, monkeypatch, capsys
):
    from gradscore.detector import prediction_file

    def full(self, columns):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prediction_file._Csv, "write", full)
    out = tmp_path / "a.csv"
    words = ("predict", "digits:unseen", "--detector", detector, "-o", out, "--workers", "0")
    assert call(*words) == 1
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert "holds the first" not in told
    assert list(tmp_path.iterdir()) == []


def test_json_lines_go_to_standard_output_and_all_else_to_standard_error(detector, tmp_path):
    folder = pictures(tmp_path / "new", 3)
    (folder / "line\nfeed.png").write_bytes((folder / "000.png").read_bytes())
    result = invoke("predict", folder, "--detector", detector, "--workers", "0", "-o", "-")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["path"].rpartition("/")[2] for row in rows] == sorted(os.listdir(folder))
    assert rows[0].keys() == {"path", "predicted", "score", "p_value", "accepted"}
    assert "of 4 images" in result.stderr
    assert "line\\nfeed.png" in result.stderr
    assert "Wrote" not in result.stderr


def test_images_that_cannot_be_read_are_named_or_end_the_work(detector, tmp_path, capsys):
    folder = pictures(tmp_path / "new", 3)
    (folder / "001.png").write_bytes(b"no picture")
    words = ("predict", folder, "--detector", detector, "--workers", "0")
    assert "Leave such images out with --on-error skip" in fails(capsys, *words)
    result = invoke(*words, "--on-error", "skip")
    assert result.exit_code == 0, result.output
    assert "1 image without a decision: not readable." in result.stderr
    assert "of 2 images" in result.stdout


def test_what_cannot_be_is_one_line(detector, tmp_path, capsys):
    told = fails(capsys, "predict", "digits:unseen", "--detector", tmp_path / "absent.safetensors")
    assert "Cannot read the detector" in told
    told = fails(capsys, "predict", tmp_path / "absent", "--detector", detector)
    assert "absent" in told
    told = fails(capsys, "predict", "digits:unseen", "--detector", detector, "--weights", "random")
    assert "Expected the weights" in told
    told = fails(
        capsys, "predict", "digits:unseen", "--detector", detector, "-o", tmp_path / "a.txt"
    )
    assert "ending in .csv, .parquet, .jsonl" in told


def test_a_score_of_ones_own_is_imported_only_where_it_is_given_again(
    detector, tmp_path, monkeypatch, capsys
):
    (tmp_path / "own_score.py").write_text(
        "def spread(features, logits, head):\n    return logits.std(dim=1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name, file = "python:own_score:spread", tmp_path / "own.safetensors"
    run = detector.parent / "run"
    words = ("digits:unseen", "--detector", file, "--show", "0")
    try:
        assert call("calibrate", "--run", run, "--method", name, "-o", file, "-q") in (0, None)
        capsys.readouterr()
        METHODS.pop(name)
        told = fails(capsys, "predict", *words)
        assert "it is imported only where you give it" in told
        assert call("predict", *words, "--method", name) in (0, None)
        assert "of 714 images" in capsys.readouterr().out
    finally:
        METHODS.pop(name, None)


def test_pictures_of_unknown_normalisation_are_told_of(tmp_path):
    model = gs.create_model("digits")
    del model.preprocessing
    made = gs.Detector.calibrate(model, torch.rand(70, 1, 8, 8))
    made.save(tmp_path / "d.safetensors")
    result = invoke("predict", "digits:unseen", "--detector", tmp_path / "d.safetensors")
    assert result.exit_code == 0, result.output
    assert "Nothing is known of how pictures become the model's input" in result.stderr
