"""Decisions on new images: written as they come, counted together, kept whatever ends the work."""

import csv
import io
import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
from scipy import stats

import gradscore as gs
from gradscore.data import open_set
from gradscore.detector.file import DetectorInfo
from gradscore.detector.prediction import Predictions, Tally, predict_images
from gradscore.detector.prediction_file import streamed_predictions, written_predictions
from gradscore.detector.threshold import Threshold
from gradscore.errors import DataError, InvalidArgument


def told(**change):
    threshold = Threshold.of(np.arange(1000.0))
    fields = {
        "method": "energy",
        "settings": {},
        "threshold": threshold,
        "model": "digits",
        "weights": None,
        "weights_sha256": "",
        "head_sha256": "",
        "preprocessing": {},
        "precision": "float32",
        "input_shape": (1, 8, 8),
        "classes": 3,
    }
    return DetectorInfo(**{**fields, **change})


def part(scores, start=0, failed=()):
    scores = np.array(scores, dtype=np.float64)
    paths = [f"=a/{start + k}.png" for k in range(len(scores))]
    predicted = np.arange(len(scores)) % 3
    p_value = (scores + 1) / 1001
    accepted = scores >= 38
    return Predictions(
        paths, predicted, scores, p_value, accepted, list(failed), len(scores) + len(failed)
    )


def written(path, *parts, info=None):
    return streamed(path, parts, info)


def streamed(path, parts, info=None):
    with written_predictions(path, info or told()) as rows:
        for one in parts:
            rows.add(one)
    return path


def nothing_yet():
    raise KeyboardInterrupt
    yield


def test_what_ends_before_the_first_row_leaves_an_older_file_alone(tmp_path):
    path = written(tmp_path / "a.csv", part([1]))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        streamed(path, nothing_yet())
    assert path.read_bytes() == before


def rows_of(path):
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return [(*r[:-3], float(r[-3]), float(r[-2]), r[-1]) for r in [*csv.reader(file)][1:]]
    if path.suffix == ".jsonl":
        return [tuple(json.loads(line).values()) for line in path.read_text().splitlines()]
    return [tuple(row.values()) for row in pyarrow.parquet.read_table(path).to_pylist()]


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_every_format_holds_every_row_in_order(tmp_path, ending):
    path = written(tmp_path / f"a{ending}", part([37, 38.5]), part([]), part([100], start=2))
    text, guard = ending == ".csv", "'" if ending == ".csv" else ""
    expected = [
        (f"{guard}=a/0.png", 0, 37.0, 38 / 1001, False),
        (f"{guard}=a/1.png", 1, 38.5, 39.5 / 1001, True),
        (f"{guard}=a/2.png", 0, 100.0, 101 / 1001, True),
    ]
    if text:
        expected = [(p, str(y), s, v, str(a).lower()) for p, y, s, v, a in expected]
    assert rows_of(path) == expected


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_classes_have_their_numbers_and_their_names_where_these_are_known(tmp_path, ending):
    info = told(class_names=("=cat", "dog", "\udcffé"))
    path = written(tmp_path / f"a{ending}", part([1, 2, 3]), info=info)
    assert [int(row[1]) for row in rows_of(path)] == [0, 1, 2]
    names = [row[2] for row in rows_of(path)]
    guard = "'" if ending == ".csv" else ""
    assert names[:2] == [f"{guard}=cat", "dog"]
    assert names[2].endswith("é")


def test_a_large_parquet_has_few_row_groups(tmp_path):
    path = written(tmp_path / "a.parquet", *(part(range(64), 64 * k) for k in range(130)))
    assert pyarrow.parquet.ParquetFile(path).metadata.num_row_groups == 3
    assert [row[0] for row in rows_of(path)] == [f"=a/{k}.png" for k in range(64 * 130)]


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), DataError("b.png: it is none"), MemoryError(), ZeroDivisionError()],
)
@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_what_was_written_is_kept_whatever_ends_the_work(tmp_path, ending, error):
    path = tmp_path / f"a{ending}"

    def parts():
        yield part([37, 38.5])
        raise error

    with pytest.raises(type(error)) as caught:
        streamed(path, parts())
    assert caught.value is error
    assert len(rows_of(path)) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_how_many_rows_a_finished_file_holds(tmp_path, ending):
    with written_predictions(tmp_path / f"a{ending}", told()) as rows:
        rows.add(part([37, 38.5]))
        assert rows.kept == 0
    assert rows.kept == 2


def test_rows_are_given_on_at_once_where_they_are_streamed():
    class Pipe(io.BytesIO):
        flushed = 0

        def flush(self):
            self.flushed = len(self.getvalue())

    pipe = Pipe()
    with streamed_predictions(pipe, told()) as rows:
        rows.add(part([37]))
        assert json.loads(pipe.getvalue()[: pipe.flushed])["score"] == 37
    assert not pipe.closed
    assert rows.kept == 0


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match=r"ending in \.csv, \.parquet, \.jsonl"):
        written(tmp_path / "a.txt")


def test_the_lowest_scores_are_kept_in_order_the_first_of_ties():
    tally, rng = Tally(told(), kept=7), np.random.default_rng(0)
    scores = rng.integers(0, 50, 300).astype(float)
    for start in range(0, 300, 64):
        tally.add(part(scores[start : start + 64], start))
    expected = np.argsort(scores, kind="stable")[:7]
    assert [row[0] for row in tally.lowest] == [f"=a/{k}.png" for k in expected]
    assert [row[2] for row in tally.lowest] == scores[expected].tolist()


def test_how_many_are_flagged_and_whether_that_is_too_many():
    tally = Tally(told())
    tally.add(part([10.0] * 20 + [50.0] * 180))
    assert (tally.flagged, tally.images) == (20, 200)
    low, high = stats.binomtest(20, 200).proportion_ci(method="exact")
    assert tally.interval == pytest.approx((low, high))
    expected = stats.betabinom.sf(19, 200, 39, 1001 - 39)
    assert tally.drift_p_value == pytest.approx(expected, rel=1e-6)
    assert tally.drifted is True
    assert tally.summary() == ("Flagged 20 of 200 images (10.0%; 95% interval 6.2% to 15.0%).")
    assert "these images have drifted" in tally.verdict()
    clean = Tally(told())
    clean.add(part([10.0] * 8 + [50.0] * 192))
    assert clean.drifted is False
    assert clean.verdict().startswith("200 images like those of the calibration could give")


def test_a_cross_fitted_detector_gives_no_verdict():
    tally = Tally(told(cross_fit=True))
    tally.add(part([10.0] * 200))
    assert tally.drifted is None
    assert "is not known: the detector was cross-fitted" in tally.verdict()


def test_images_that_cannot_be_read_are_counted_and_the_first_ones_named():
    tally = Tally(told(), kept=2)
    tally.add(part([50.0], failed=["a", "b", "c"]))
    assert (tally.images, tally.unread, tally.failed) == (1, 3, ["a", "b"])


@pytest.fixture(scope="module")
def detector():
    model = gs.create_model("digits")
    images = open_set("digits:test")
    x = [model.preprocessing(images[k]) for k in range(200)]
    return gs.Detector.calibrate(model, torch.stack(x), method="gradnorm")


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_a_set_have_the_decisions_of_a_call(detector, workers):

    images = open_set("digits:unseen", limit=90)
    found = [*predict_images(detector, images, batch_size=40, workers=workers)]
    assert [len(one) for one in found] == [40, 40, 10]
    x = torch.stack([detector.preprocessing(images[k]) for k in range(90)])
    expected = detector(x)
    scores = np.concatenate([one.score for one in found])
    np.testing.assert_allclose(scores, expected.score, rtol=1e-5)
    assert [path for one in found for path in one.path] == list(images.paths)
    assert np.array_equal(
        np.concatenate([one.predicted for one in found]), expected.logits.argmax(1)
    )


def test_an_image_that_cannot_be_read_ends_the_work_or_is_left_out(detector, tmp_path):
    from PIL import Image

    for name in ("a.png", "c.png"):
        Image.new("L", (8, 8), 128).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no picture")
    images = open_set(tmp_path, labelled=False)
    with pytest.raises(DataError, match=r"b\.png.*on_error='skip'"):
        [*predict_images(detector, images)]
    (found,) = predict_images(detector, images, skip=True)
    assert [path.rpartition("/")[2] for path in found.path] == ["a.png", "c.png"]
    assert len(found.failed) == 1
    assert found.done == 3
