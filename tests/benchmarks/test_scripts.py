"""Scripts of the benchmarks still run, and write the columns that their records have."""

import argparse
import csv
import functools
import importlib
from pathlib import Path

import detectors
import exported
import predict
import pytest
import records

import gradscore as gs
from gradscore.data import open_set

BENCHMARKS = Path(detectors.__file__).parent
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py"))


def columns(record):
    with (BENCHMARKS / "results" / record).open(newline="") as file:
        return next(csv.reader(file))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_finds_what_it_imports(script):
    importlib.import_module(script)


def test_a_row_of_other_columns_is_not_appended(tmp_path):
    path = tmp_path / "record.csv"
    for seconds in (1, 2):
        records.append(path, {"model": "digits", "seconds": seconds})
    before = path.read_text()
    assert before == "model,seconds\ndigits,1\ndigits,2\n"
    with pytest.raises(ValueError, match=r"columns model, way, seconds .* got model, seconds"):
        records.append(path, {"model": "digits", "way": "apart", "seconds": 3})
    assert path.read_text() == before


def test_detectors_are_tried_on_the_half_that_did_not_calibrate_them(tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "HALVES", 2)
    sets = {
        "digits": ("id", "digits:test"),
        "unseen": ("ood", "digits:unseen"),
        "train": ("fit", "digits:train"),
    }
    limit = {"digits": 361, "unseen": 50, "train": 80}
    run = gs.extract("digits", sets, tmp_path / "run", layers="last", limit=limit)
    rows = detectors.measured(run.store)
    assert list(rows[0]) == columns("detectors.csv")
    found = {(row["score"], row["how"]): row for row in rows if row["set"] == "other half"}
    learned = {how: found[detectors.LEARNED, how] for _, how in found if how}
    assert learned.keys() == {"half", "cross-fit", "fit set", "in-sample"}
    assert {how: (row["calibrated"], row["learned_from"]) for how, row in learned.items()} == {
        "half": (90, 90),
        "cross-fit": (180, 180),
        "fit set": (180, 80),
        "in-sample": (180, 180),
    }
    assert all(row["images"] == 181 for row in found.values())
    assert all(float(row["flagged"]) <= 0.05 for row in found.values())
    assert {row["set"] for row in rows} == {"other half", "unseen"}


def test_predict_is_measured_beside_extraction(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "IMAGES", 120)
    monkeypatch.setattr(predict, "FIRST", 64)
    monkeypatch.setattr(predict, "CALIBRATED", 80)
    options = argparse.Namespace(
        method="energy", repeats=2, seconds=60.0, data=None, cpu_time=True
    )
    row = predict.measured(tmp_path, options)
    assert list(row) == columns("predict-cpu.csv")
    assert float(row["lowest"]) <= float(row["fraction"]) <= float(row["highest"])
    assert (row["images"], row["repeats"]) == (120, 2)
    with (tmp_path / "decisions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 120


@pytest.mark.usefixtures("known_operators")
def test_exported_detectors_are_asked_without_torch(tmp_path):
    images = open_set("digits:test", limit=160)
    folder = tmp_path / "digits"
    folder.mkdir()
    for place in range(160):
        images[place].save(folder / f"{place}.png")
    listed = [("path", "label"), *((f"{place}.png", -1) for place in range(160))]
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(listed)
    make = functools.partial(gs.create_model, "digits")
    subject = exported.Subject(make, ("digits", "digits"), 160, ("energy",))
    rows = list(exported.measured("digits", subject, tmp_path, tmp_path))
    assert list(rows[0]) == columns("onnx.csv")
    assert [row["batch"] for row in rows] == [1, 7, 64]
    assert {row["images"] for row in rows} == {160}
    assert {row["differ"] for row in rows} == {0}
    assert all(float(row["apart"]) < 1e-5 for row in rows)
