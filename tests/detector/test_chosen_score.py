"""A score that was chosen is calibrated by images that had no part in the choice."""

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import gradscore as gs
from gradscore.choosing import choose, choose_by_half
from gradscore.cli import cli
from gradscore.detector import Detector
from gradscore.detector.calibration import calibrate_run
from gradscore.detector.wanted import Wanted
from gradscore.errors import NotRecorded

SETS = {"digits": ("id", "digits:test"), "noise": ("ood", "digits:noise")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    run = gs.extract("digits", SETS, path, layers="last").store
    choose(run)
    return run


@pytest.fixture(scope="module")
def choosers(run):
    """Return the places of the images that choose, and that teach without a set to fit to."""
    (source,) = calibrate_run(run, Wanted("knn")).info.fit
    return set(source.rows)


@pytest.fixture
def recommend(monkeypatch):
    """Let the choice by one half recommend a score by its name."""

    def change(method):
        def choose_another(*asked):
            choice = choose_by_half(*asked)
            return replace(
                choice, spec=next(r.spec for r in choice.near if r.spec.method == method)
            )

        monkeypatch.setattr("gradscore.detector.wanted.choose_by_half", choose_another)

    return change


def rows_of(sources):
    return {one.name: set(one.rows) for one in sources}


@pytest.mark.parametrize("method", ["energy", "knn"])
def test_no_image_that_chose_gives_the_threshold(run, choosers, recommend, method):
    recommend(method)
    info = calibrate_run(run, Wanted()).info
    assert info.method == method
    assert rows_of(info.calibration) == {"digits": set(range(361)) - choosers}
    assert rows_of(info.fit) == ({"digits": choosers} if method == "knn" else {})
    told = f"the score is {method}, chosen by 181 of the 361 images of digits"
    assert info.notices[0].startswith(told)
    assert info.notices[0].endswith("; none of these gives the threshold")


def test_where_all_images_chose_another_score_it_is_told(run, recommend):
    whole = run.read_choice().method
    other = "energy" if whole != "energy" else "msp"
    recommend(other)
    assert f"(all images chose {whole}" in calibrate_run(run, Wanted()).info.notices[0]


def test_a_score_that_its_user_names_is_calibrated_by_all(run):
    (source,) = calibrate_run(run, Wanted("energy")).info.calibration
    assert (source.images, source.rows) == (361, ())


def test_detector_and_command_line_take_the_same_images(run, choosers, recommend, tmp_path):
    recommend("energy")
    info = Detector.calibrate(run).info
    assert rows_of(info.calibration) == {"digits": set(range(361)) - choosers}
    words = ["calibrate", "--run", str(run.path), "-o", str(tmp_path / "d.safetensors")]
    result = CliRunner().invoke(cli, words)
    assert "none of these gives the threshold." in result.stderr
    assert Detector.load(tmp_path / "d.safetensors").info.threshold == info.threshold


def test_a_cross_fit_scores_what_did_not_choose_by_all_others(run, choosers, recommend):
    recommend("knn")
    info = calibrate_run(run, Wanted(cross_fit=True)).info
    assert rows_of(info.calibration) == {"digits": set(range(361)) - choosers}
    assert [(one.images, one.rows) for one in info.fit] == [(361, ())]
    assert info.threshold.images == 180


def test_with_a_set_to_fit_to_the_other_half_gives_the_threshold(recommend, tmp_path):
    sets = {"a": ("id", "digits:test"), "b": ("id", "digits:test"), "t": ("fit", "digits:train")}
    run = gs.extract("digits", sets, tmp_path / "run", layers="last").store
    choose(run, sets=["a"])
    recommend("knn")
    info = calibrate_run(run, Wanted()).info
    assert [(one.name, one.images) for one in info.calibration] == [("a", 180), ("b", 361)]
    assert [(one.name, one.rows) for one in info.fit] == [("t", ())]


def test_an_id_set_that_taught_the_compared_scores_gives_its_other_half_alone(recommend, tmp_path):
    sets = {"a": ("id", "digits:test"), "b": ("id", "digits:test"), "c": (None, "digits:train")}
    run = gs.extract("digits", sets, tmp_path / "run", layers="last").store
    choose(run, sets=["a"])
    recommend("energy")
    info = calibrate_run(run, Wanted()).info
    assert [(one.name, one.images) for one in info.calibration] == [("a", 180), ("b", 180)]
    choose(run, sets=["a"], fit="c")
    recommend("knn")
    info = calibrate_run(run, Wanted()).info
    assert [(one.name, one.rows) for one in info.fit] == [("c", ())]
    with pytest.raises(NotRecorded, match="images that did not choose the score, got none in c"):
        calibrate_run(run, Wanted(), ["c"])


def test_halves_are_of_one_set_alone_and_leave_out_what_could_not_be_read():
    from gradscore.choosing.halves import split
    from gradscore.run import FailedRow, SetInfo

    class Sets:
        sets = {  # noqa: RUF012
            "a": SetInfo("a", "id", "", "", 11, failed=[FailedRow(3, "a/3", "broken")]),
            "b": SetInfo("b", "id", "", "", 11),
        }

    first, second = split(Sets, "a", 2)
    assert not (first & second).any()
    assert np.flatnonzero(~(first | second)).tolist() == [3]
    assert (first.sum(), second.sum()) == (5, 5)
    assert [int(mask.sum()) for mask in split(Sets, "b", 3)] == [4, 4, 3]
