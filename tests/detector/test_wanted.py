"""The score of a calibration that names none: what was chosen for the run, else energy."""

import pytest
import torch
from helpers.commands import call

import gradscore as gs
from gradscore.detector.wanted import Wanted
from gradscore.errors import NotRecorded
from gradscore.run import ChoiceRecord, RunStore, ScoreRecord


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("wanted") / "run"
    return gs.extract("digits", {"digits": ("id", "digits:test")}, path, layers="last").path


@pytest.fixture
def run(recorded):
    (recorded / "fits" / "choice.json").unlink(missing_ok=True)
    return recorded


def choose(path, method, options, warning=None, sets=("digits",)):
    """Keep a choice in a run, as `choose` does."""
    row = ScoreRecord(method, options, 1.0, 0.9, 1.1, {"a": 0.9}, False)
    recommended = {"method": method, **options}
    record = ChoiceRecord(recommended, "far", warning, [], list(sets), [row], [])
    (path / "fits").mkdir(exist_ok=True)
    (path / "fits" / "choice.json").write_text(record.to_json())


def test_without_a_choice_it_is_energy_and_the_command_for_a_choice_is_told(run):
    found = Wanted().of_run(RunStore(run))
    assert (found.method, dict(found.options)) == ("energy", {})
    (told,) = found.notices
    assert told.startswith("no score was chosen: energy is taken; `gradscore choose --run ")


def test_half_of_the_images_that_chose_choose_anew_and_given_options_go_first(run):
    choose(run, "gradnorm", {"p": "inf", "temperature": 2.0})
    found = Wanted(options={"temperature": 3.0, "target": None}).of_run(RunStore(run))
    (by,) = found.chosen_by
    assert (by.name, by.of) == ("digits", 361)
    assert 0 < by.images < by.of
    assert found.options["temperature"] == 3.0
    told = found.notices[0]
    assert told.startswith(f"the score is {found.method}")
    assert f"{by.images} of the 361 images of digits" in told
    assert "none of these gives the threshold" in told


def test_a_score_that_is_named_stays(run):
    choose(run, "gradnorm", {})
    wanted = Wanted("msp")
    assert wanted.of_run(RunStore(run)) is wanted.of_model() is wanted


def test_a_python_score_that_only_the_run_names_is_not_imported(run, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    choose(run, "python:planted:score", {})
    with pytest.raises(NotRecorded, match="imported only where you give it"):
        Wanted().of_run(RunStore(run))


def test_a_choice_of_a_set_that_is_gone_is_not_used(run):
    choose(run, "gradnorm", {}, sets=("gone",))
    with pytest.raises(NotRecorded, match=r"no longer holds the set 'gone'.*choose again"):
        Wanted().of_run(RunStore(run))


def test_command_and_call_take_the_same_score(run, tmp_path, capsys):
    choose(run, "msp", {})
    assert call("calibrate", "--run", run, "-o", tmp_path / "d.safetensors") in (0, None)
    errors = capsys.readouterr().err
    made = gs.Detector.load(tmp_path / "d.safetensors").info
    assert f"The score is {made.method}" in errors
    assert made == gs.Detector.calibrate(run).info


def test_images_of_a_model_give_energy_and_tell():
    made = gs.Detector.calibrate(gs.create_model("digits"), torch.rand(80, 1, 8, 8))
    assert made.info.method == "energy"
    assert "no score was chosen: energy is taken; `gs.choose` says" in made.info.notices[0]
