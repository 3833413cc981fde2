"""A detector's file comes back as it was; a damaged or hostile one is one clear line."""

import dataclasses
import json
import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import load, save

from gradscore.detector.file import DetectorInfo, Source, read_detector, write_detector
from gradscore.detector.threshold import Threshold
from gradscore.errors import DetectorError, InvalidArgument

SCORES = np.sort(np.random.default_rng(0).standard_normal(200))


def sample(**changes):
    fields = {
        "method": "energy",
        "settings": {"temperature": 1.0},
        "threshold": Threshold.of(SCORES),
        "model": "digits",
        "weights": None,
        "weights_sha256": "0" * 64,
        "head_sha256": "1" * 64,
        "preprocessing": {"resize": None, "mean": [0.5], "std": [0.25]},
        "precision": "float32",
        "input_shape": (1, 8, 8),
        "classes": 6,
        "class_names": ("a", "b", "c", "d", "e", "é\n"),
        "calibration": (Source("digits", "digits:test", "2" * 64, 3, (0, 2, 5)),),
        "fit": (Source("train", "train", "3" * 64, 9),),
        "notices": ("some images are there twice",),
        "id_accuracy": 0.97,
        "versions": {"torch": "2"},
    }
    return DetectorInfo(**{**fields, **changes})


def arrays(**more):
    predicted = np.arange(len(SCORES)) % 6
    return {"scores": SCORES, "predicted": predicted, "fit.mean": np.ones((2, 3)), **more}


def written(tmp_path, info=None, **more):
    path = tmp_path / "detector.safetensors"
    write_detector(path, info or sample(), arrays(**more))
    return path


def rewritten(path, text=None, found=None, digest=None):
    """Write a file anew with a digest that fits, as one who means harm would."""
    from gradscore.detector import file

    content = path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    text = text if text is not None else header["__metadata__"]["gradscore"]
    found = found if found is not None else load(content)
    made = digest if digest is not None else file._digest(text, found)
    path.write_bytes(save(found, {"gradscore": text, "sha256": made}))


def edited(path, **changes):
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    fields = json.loads(header["__metadata__"]["gradscore"])
    rewritten(path, json.dumps({**fields, **changes}))


def refusal(path):
    with pytest.raises(DetectorError) as caught:
        read_detector(path)
    text = str(caught.value)
    assert "\n" not in text
    assert path.name in text
    return text


def test_a_file_comes_back_as_it_was_and_equal_content_gives_equal_bytes(tmp_path):
    path = written(tmp_path)
    info, found = read_detector(path)
    assert info == sample()
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in arrays().items()
    }
    first = path.read_bytes()
    assert written(tmp_path).read_bytes() == first


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match=r"ending in \.safetensors"):
        write_detector(tmp_path / "detector.pt", sample(), arrays())


def test_a_file_that_cannot_be_written_or_read_is_one_line(tmp_path):
    with pytest.raises(DetectorError, match="Cannot write"):
        write_detector(tmp_path / "absent" / "d.safetensors", sample(), arrays())
    assert "No such file" in refusal(tmp_path / "absent.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert "got a folder" in refusal(tmp_path / "folder.safetensors")


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1, -1000])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    assert "is damaged or none" in refusal(path)


def test_every_altered_byte_is_seen(tmp_path):
    path = written(tmp_path)
    content = path.read_bytes()
    places = [*range(0, 120), *range(120, len(content), 997), len(content) - 1]
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert "is damaged or none" in refusal(path) or "schema" in refusal(path)


def test_a_pickle_is_named_and_not_opened(tmp_path):
    path = tmp_path / "detector.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "got a pickle" in refusal(path)
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "got a pickle or an archive" in refusal(path)


def test_a_header_of_any_length_is_no_pickle(tmp_path):
    beginnings = set()
    for size in range(0, 256, 8):
        path = written(tmp_path, sample(model="m" * size))
        assert read_detector(path)[0].model == "m" * size
        beginnings.add(path.read_bytes()[:1])
    assert b"\x80" in beginnings


def test_weights_are_no_detector(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({"weight": np.ones(3)}))
    assert "without the entry 'gradscore'" in refusal(path)
    path.write_bytes(save({"weight": np.ones(3)}, {"format": "pt"}))
    assert "without the entry 'gradscore'" in refusal(path)


def test_a_newer_schema_is_told_whatever_else_it_says(tmp_path):
    path = written(tmp_path)
    edited(path, schema=2, unknown=True)
    assert "Expected a detector of schema 1, got schema 2" in refusal(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": 3},
        {"unknown": 1},
        {"schema": 0},
        {"schema": True},
        {"input_shape": []},
        {"input_shape": [1, 100_000, 100_000]},
        {"input_shape": [1, -8, 8]},
        {"precision": "int8"},
        {"fit": []},
        {"parameters": ["fc.weight"], "settings": {}},
        {"preprocessing": {"resize": [10**6, 10**6]}},
        {"preprocessing": {"crop": 10**9}},
        {"id_accuracy": 7.0},
        {"fit": [{**dataclasses.asdict(Source("a")), "rows": [0, -5]}]},
        {"calibration": [{**dataclasses.asdict(Source("a")), "images": -1}]},
        {"classes": 5},
        {"classes": 2**70},
        {"class_names": ["a"]},
        {"threshold": None},
        {"threshold": {**dataclasses.asdict(Threshold.of(SCORES)), "value": -9.0}},
        {"threshold": {**dataclasses.asdict(Threshold.of(SCORES)), "rank": 0}},
        {"threshold": {**dataclasses.asdict(Threshold.of(SCORES)), "tpr": "1e999999999"}},
        {"threshold": {**dataclasses.asdict(Threshold.of(SCORES)), "tpr": "0.9999"}},
        {"threshold": {**dataclasses.asdict(Threshold.of(SCORES)), "guarantee": "sure"}},
        {"threshold": {**dataclasses.asdict(Threshold.of(SCORES)), "images": 10**9}},
    ],
)
def test_what_no_calibration_could_have_written_is_refused(tmp_path, changes):
    path = written(tmp_path)
    edited(path, **changes)
    assert "is damaged or none" in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": SCORES[::-1].copy()},
        {"scores": SCORES.astype(np.float32)},
        {"scores": np.where(np.arange(200) == 3, np.nan, SCORES)},
        {"scores": SCORES[:-1]},
        {"scores": SCORES.reshape(20, 10)},
        {"predicted": np.full(200, 6)},
        {"predicted": np.full(200, -1)},
        {"other": np.ones(1)},
        {"fit.mean": np.array([np.inf])},
        {"fit.mean": np.array([True])},
    ],
)
def test_arrays_that_do_not_belong_are_refused(tmp_path, change):
    path = written(tmp_path)
    rewritten(path, found=arrays(**change))
    assert "is damaged or none" in refusal(path)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '{"schema": 1, "schema": 1}', "NaN"])
def test_a_text_that_is_no_object_is_refused(tmp_path, text):
    path = written(tmp_path)
    rewritten(path, text)
    assert "is damaged or none" in refusal(path)


def test_a_digest_that_does_not_fit_is_told(tmp_path):
    path = written(tmp_path)
    rewritten(path, digest="0" * 64)
    assert "does not agree with its SHA-256" in refusal(path)


def test_a_header_without_end_is_not_read(tmp_path):
    path = tmp_path / "detector.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    assert "is damaged or none" in refusal(path)
