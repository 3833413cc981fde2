"""A detector that is damaged, foreign or hostile: one clear line of each command that reads it."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from helpers.commands import call, fails
from safetensors.numpy import load, save

import gradscore as gs
from gradscore.data import open_set
from gradscore.detector import file as detector_file

ESCAPES = "\x1b]0;x\x07\x1b[31m\n\u202e"
CALIBRATED = 80


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    model = gs.create_model("digits")
    pictures = open_set("digits:test")
    images = torch.stack([model.preprocessing(pictures[k]) for k in range(CALIBRATED)])
    path = tmp_path_factory.mktemp("sound") / "sound.safetensors"
    gs.Detector.calibrate(model, images, method="energy").save(path)
    text, arrays = parts(path.read_bytes())
    fields = json.loads(text)
    fields["model"] = "digits"
    path.write_bytes(joined(json.dumps(fields), arrays))
    return path


def parts(content):
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    return header["__metadata__"]["gradscore"], load(content)


def joined(text, arrays, digest=None):
    """Return a file whose digest fits, as one who means harm would make it."""
    digest = digest or detector_file._digest(text, arrays)
    return save(arrays, {"gradscore": text, "sha256": digest})


def said(**changes):
    def change(content):
        text, arrays = parts(content)
        return joined(json.dumps({**json.loads(text), **changes}), arrays)

    return change


def valued(written):
    """Return what writes another threshold into the text."""

    def change(content):
        text, arrays = parts(content)
        value = repr(json.loads(text)["threshold"]["value"])
        return joined(text.replace(value, written), arrays)

    return change


def holding(**change):
    def changed(content):
        text, arrays = parts(content)
        return joined(
            text, {**arrays, **{n: make(arrays["scores"]) for n, make in change.items()}}
        )

    return changed


BYTES = {
    "truncated": (lambda c: c[: len(c) // 2], "is damaged or none: "),
    "cut by a byte": (lambda c: c[:-1], "is damaged or none: "),
    "edited": (lambda c: c[:-3] + b"abc", "does not agree with its SHA-256"),
    "empty": (lambda c: b"", "expected a .safetensors file, got something else"),
    "text": (lambda c: b"a text\n", "expected a .safetensors file, got something else"),
    "pickle": (lambda c: pickle.dumps({"a": 1}), "got a pickle or an archive"),
    "archive": (lambda c: b"PK\x03\x04" + bytes(99), "got a pickle or an archive"),
    "huge header": (lambda c: struct.pack("<Q", 2**62) + c[8:], "got something else or a part"),
    "weights": (lambda c: save({"w": np.ones(2)}), "without the entry 'gradscore'"),
    "digest": (lambda c: joined(*parts(c), "0" * 64), "does not agree with its SHA-256"),
    "newer schema": (said(schema=9), "Expected a detector of schema 1, got schema 9"),
    "unknown field": (said(**{ESCAPES: 1}), r"expected no '\x1b]0;x\x07\x1b[31m\n\u202e' in it"),
    "NaN": (valued("NaN"), "expected finite numbers, got NaN"),
    "infinity": (valued("1e999"), "expected a finite number as threshold.value, got inf"),
    "another threshold": (valued("-99.5"), "its threshold is not that of its scores"),
    "float16": (holding(scores=np.float16), "expected 'scores' to be another"),
    "NaN scores": (holding(scores=lambda s: s * np.nan), "expected finite numbers in 'scores'"),
    "a tensor too much": (holding(**{ESCAPES: np.sort}), r"expected '\x1b]0;x"),
    "precision": (said(precision=ESCAPES), r"got '\x1b]0;x"),
    "huge pictures": (
        said(preprocessing={"resize": 10**6}),
        "resize that gives at most 67,108,864",
    ),
}


@pytest.mark.parametrize("command", ["predict", "info"])
@pytest.mark.parametrize("case", BYTES)
def test_a_damaged_or_hostile_file_is_one_line(sound, tmp_path, capsys, case, command):
    change, message = BYTES[case]
    path = tmp_path / "d.safetensors"
    path.write_bytes(change(sound.read_bytes()))
    told = fails(capsys, *words(command, path))
    assert message in told
    assert "d.safetensors" in told
    assert told.isprintable()


def words(command, path):
    if command == "info":
        return ("detector", "info", path)
    return (command, "digits:unseen", "--detector", path, "--workers", "0")


PLACES = {
    "folder": (lambda path: path.mkdir(), "expected a regular file, got a folder"),
    "FIFO": (os.mkfifo, "expected a regular file, got a FIFO"),
    "dangling link": (lambda path: path.symlink_to("/absent"), "No such file"),
    "5 GiB": (lambda path: path.touch() or os.truncate(path, 5 << 30), "at most 4,294,967,296"),
}


@pytest.mark.parametrize("case", PLACES)
def test_what_is_no_file_is_one_line(tmp_path, capsys, case):
    make, message = PLACES[case]
    path = tmp_path / "d.safetensors"
    make(path)
    assert message in fails(capsys, *words("info", path))


MODELS = {
    "other model": (
        ("--model", "cifar:resnet20", "--weights", "random"),
        "is of the model 'digits', you named 'cifar:resnet20'. Expected the weights",
    ),
    "no model": (("--model", "python:absent:make"), "you named 'python:absent:make'. Cannot"),
    "other weights": (("--weights", "random"), "Expected the weights that the detector was"),
    "other score": (("--method", "msp"), "Expected the score of the detector"),
}


@pytest.mark.parametrize("command", ["predict", "export"])
@pytest.mark.parametrize("case", MODELS)
def test_another_model_weights_or_score_is_one_line(sound, tmp_path, capsys, case, command):
    given, message = MODELS[case]
    out = tmp_path / {"predict": "a.csv", "export": "gate.onnx"}[command]
    start = ("export", "--detector", sound) if command == "export" else words(command, sound)
    assert message in fails(capsys, *start, *given, "-o", out)
    assert not out.exists()


CODE = {
    "model": "names the model 'python:planted:make', which could run code or fetch files",
    "method": "names the score 'python:planted:make', which is code: it is imported only",
}


@pytest.mark.parametrize("field", CODE)
def test_code_that_only_the_file_names_is_not_imported(
    sound, tmp_path, capsys, monkeypatch, field
):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "d.safetensors"
    path.write_bytes(said(**{field: "python:planted:make"})(sound.read_bytes()))
    assert CODE[field] in (told := fails(capsys, *words("predict", path)))
    assert f"add --{field} python:planted:make if you trust it." in told
    assert call(*words("info", path)) in (0, None)
    assert "python:planted:make" in capsys.readouterr().out


def test_info_says_how_large_the_file_is(sound, capsys):
    assert call(*words("info", sound)) in (0, None)
    assert f" {sound.stat().st_size:,} bytes\n" in capsys.readouterr().out


def test_what_a_file_says_is_escaped_where_it_is_shown(sound, tmp_path, capsys):
    fields = {"notices": [ESCAPES], "versions": {ESCAPES: ESCAPES}, "class_names": [ESCAPES] * 6}
    path = tmp_path / "d.safetensors"
    path.write_bytes(said(**fields)(sound.read_bytes()))
    assert call(*words("info", path)) in (0, None)
    assert call(*words("predict", path)) in (0, None)
    shown = "".join(capsys.readouterr())
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}
    assert r"\x1b" in shown
