"""Which score and threshold a report shows: a detector's, a method's, the choice's, or energy."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers.commands import call
from helpers.pages import Page, table_of
from helpers.report_runs import drawn_run, embedded_run

import gradscore as gs
from gradscore.data import open_set
from gradscore.detector.file import DetectorInfo, Source, write_detector
from gradscore.detector.threshold import Threshold
from gradscore.errors import DetectorError, InvalidArgument, RunError
from gradscore.evaluation import evaluate_run
from gradscore.methods import ScoreSpec
from gradscore.run import RunStore
from gradscore.run.names import CHOICE_FILE

ROW = {"value": 2.0, "value_low": 1.5, "value_high": 2.5, "aurocs": {"shuffle4": 0.9}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return drawn_run(tmp_path_factory.mktemp("report") / "run")


def choose(path, *, method="msp", warning=None, **change):
    """Keep a choice in a run that no images made."""
    far = [{"method": method, "options": {}, "tied": True, **ROW}]
    far.append({"method": "kl", "options": {"temperature": 2.0}, "tied": False, **ROW})
    said = {
        "recommended": {"method": method},
        **{"by": "far", "warning": warning, "notes": ["A note."], "id": ["digits"]},
        **{"far": far, "near": []},
    } | change
    with RunStore.open_for_writing(path) as store:
        store.writer.write(CHOICE_FILE, json.dumps(said).encode())
    return path


def detector(path, run, **change):
    """Write a detector of energy, calibrated on the drawn ID images."""
    scores = gs.Run(run).score("digits", "energy").sort().values.numpy()
    threshold = Threshold.of(scores, "0.9", guarantee="marginal")
    about = RunStore(run).info
    fields = {
        **{"method": "energy", "settings": {}, "threshold": threshold, "model": about.model},
        **{"weights": None, "weights_sha256": about.weights_sha256, "head_sha256": ""},
        **{"preprocessing": {}, "precision": "float32", "input_shape": (1, 8, 8), "classes": 5},
        "calibration": (Source("digits", "drawn", "a" * 64, 40),),
    } | change
    arrays = {"scores": scores, "predicted": np.zeros(len(scores), np.int64)}
    write_detector(path, DetectorInfo(**fields), arrays)
    return path, threshold


def test_without_a_choice_energy_is_shown_with_the_command_that_makes_one(run, tmp_path):
    page = Page(gs.report(run, tmp_path / "a.html", images=False))
    assert page.root.one("dl", class_="cards").all("div")[0].text == (
        "Score energy by default: no score was chosen"
    )
    assert page.section("choice").one("code").text == f"gradscore choose --run {run}"
    assert page.section("scores").one("code").text == f"gradscore calibrate --run {run}"


def test_the_choice_is_shown_and_its_score_taken(tmp_path):
    run = choose(drawn_run(tmp_path / "run"))
    page = Page(gs.report(run, tmp_path / "a.html", images=False))
    assert page.root.one("dl", class_="cards").all("div")[0].text == (
        "Score msp as chosen for this model"
    )
    first, second = table_of(page.section("choice"))
    assert first == {
        "Score": "1. msp recommended",
        "AUROC": "88.1%",  # of log-odds 2
        "axis: 80% to 100%": "",
        "95% interval": "81.8% to 92.4%",
        "shuffle4": "90.0%",
    }
    assert second["Score"] == "2. kl (temperature 2)"
    assert "A note." in page.section("choice").text
    assert not page.section("choice").all("p", class_="warning")


def test_scores_that_are_nearly_equal_stand_on_an_axis_that_parts_them(tmp_path):
    ends = {"value_low": 4.5, "value_high": 6.0}  # AUROC 98.9 to 99.8
    far = [
        ROW | ends | {"value": value, "method": method, "options": {}, "tied": True}
        for method, value in {"msp": 5.25, "kl": 5.0}.items()
    ]
    run = choose(drawn_run(tmp_path / "run"), far=far)
    page = Page(gs.report(run, tmp_path / "a.html", images=False))
    part = page.section("choice")
    assert "axis: 98% to 100%" in table_of(part)[0]
    first, second = (float(dot.attributes["cx"].rstrip("%")) for dot in part.all("circle"))
    assert second == pytest.approx(100 * (1 / (1 + np.exp(-5)) - 0.98) / 0.02, abs=0.06)
    assert first - second > 5


def test_a_choice_that_trusts_no_score_says_so(tmp_path):
    run = choose(drawn_run(tmp_path / "run"), warning="No score is to be trusted here.")
    page = Page(gs.report(run, tmp_path / "a.html", images=False))
    warning = page.section("choice").one("p", class_="warning")
    assert warning.text == "Warning. No score is to be trusted here."


def test_a_choice_that_the_run_cannot_give_falls_back_and_says_so(tmp_path):
    run = choose(drawn_run(tmp_path / "run"), method="laplace_energy_blocks")
    page = Page(gs.report(run, tmp_path / "a.html", images=False))
    assert "laplace_energy_blocks was chosen, but cannot be shown" in page.section("run").text
    assert "energy by default" in page.root.one("header").text
    with pytest.raises(RunError, match="block means"):
        gs.report(run, tmp_path / "b.html", method="laplace_energy_blocks")


def test_a_damaged_choice_is_refused(tmp_path):
    run = choose(drawn_run(tmp_path / "run"), by="luck")
    with pytest.raises(RunError, match="expected far or near as by, got 'luck'"):
        gs.report(run, tmp_path / "a.html")


def test_a_method_goes_before_the_choice(tmp_path):
    run = choose(drawn_run(tmp_path / "run"))
    page = Page(gs.report(run, tmp_path / "a.html", images=False, method="gradnorm"))
    assert "Score gradnorm as asked" in page.root.one("header").text
    assert "1. msp recommended" in page.section("choice").text


def test_a_detectors_threshold_is_shown_with_its_promise(run, tmp_path):
    file, threshold = detector(tmp_path / "d.safetensors", run)
    page = Page(gs.report(run, tmp_path / "a.html", images=False, detector=file))
    assert "Score energy of the detector" in page.root.one("header").text
    text = page.section("scores").text
    assert "on average at most 10% of images like these are flagged" in text
    assert "gradscore calibrate" not in text
    at = page.data["start"]
    assert page.data["thresholds"][at] == f"{threshold.value:.4g}"
    assert page.data["sets"][0]["flagged"][at] == threshold.flagged == 3
    assert (
        "The detector's threshold was computed from 40 images of digits. That most of these are "
        "kept is therefore not a test of it."
    ) in page.section("run").text
    assert "d.safetensors" in page.section("run").text


def test_a_threshold_beyond_all_scores_is_on_the_axis(run, tmp_path):
    scores = np.sort(1000 + np.arange(40.0))
    threshold = Threshold.of(scores, "0.9", guarantee="marginal")
    file = tmp_path / "d.safetensors"
    _, _ = detector(file, run)
    about = RunStore(run).info
    info = DetectorInfo(
        *("energy", {}, threshold, about.model, None, about.weights_sha256, "", {}, "float32"),
        *((1, 8, 8), 5),
    )
    write_detector(file, info, {"scores": scores, "predicted": np.zeros(40, np.int64)})
    page = Page(gs.report(run, tmp_path / "a.html", images=False, detector=file))
    at = page.data["start"]
    assert page.data["at"][at] == 1000
    assert page.data["at"].count(1000) == 1
    assert {of_set["share"][at] for of_set in page.data["sets"]} == {1000}


def test_the_command_draws_the_detectors_scores_and_threshold(run, tmp_path, capsys, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "gradscore.plots.save_densities", lambda path, panels, **how: drawn.update(how, p=panels)
    )
    file, threshold = detector(tmp_path / "d.safetensors", run)
    asked = ("score", "--run", run, "--detector", file, "--plot", tmp_path / "s.png")
    assert call(*asked, "-o", tmp_path / "s.csv") == 0
    assert drawn["thresholds"] == {"energy": threshold.value}
    assert drawn["threshold_label"] == "threshold of d.safetensors"
    promised = "Threshold: on average at most 10% of images like these are flagged."
    assert drawn["subtitle"].endswith(promised)
    told = capsys.readouterr().err
    assert "The detector's threshold was computed from 40 images of digits." in told
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    flagged = [r for r in rows if r["set"] == "digits" and float(r["energy"]) < threshold.value]
    assert len(flagged) == threshold.flagged
    assert call(*asked, "--method", "energy") == 0
    assert call(*asked, "--method", "msp") == 2
    assert call(*asked, "-T", "2") == 2
    error = capsys.readouterr().err
    assert "Expected --detector without --method: it has a score of its own, energy." in error
    assert "Expected --detector without --temperature: it" in error


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"weights_sha256": "b" * 64},
            f"weights of SHA-256 {'b' * 64} there, {'a' * 64} in the run",
        ),
        ({"precision": "float16"}, "precision float16 there, float32 in the run"),
        ({"preprocessing": {"crop": 8}}, "preprocessing {'crop': 8} there, {} in the run"),
    ],
)
def test_a_detector_of_another_model_is_refused(run, tmp_path, change, told):
    file, _ = detector(tmp_path / "d.safetensors", run, **change)
    with pytest.raises(DetectorError, match="Expected a detector of the run") as refused:
        gs.report(run, tmp_path / "a.html", detector=file)
    assert told in str(refused.value)
    assert "gradscore calibrate --run" in str(refused.value)


def test_a_detectors_score_is_that_of_its_own_calls(tmp_path):
    run = embedded_run(tmp_path / "run", limit=200)
    made = gs.Detector.calibrate(run, method="laplace_energy", tpr="0.9")
    made.save(tmp_path / "d.safetensors")
    page = Page(
        gs.report(run, tmp_path / "a.html", images=False, detector=tmp_path / "d.safetensors")
    )
    at, threshold = page.data["start"], made.info.threshold
    ids, noise = page.data["sets"][0], page.data["sets"][2]
    # Half of the ID images taught the score, and are left out.
    assert ids["n"] == threshold.images == 100
    assert ids["flagged"][at] == threshold.flagged
    images = np.stack([made.preprocessing(p) for p in open_set("digits:noise", limit=200)])
    decision = made(torch.from_numpy(images))
    assert noise["flagged"][at] == int((~decision.accepted).sum())
    text = page.section("run").text
    assert "Its score learned from 100 images of digits: these are left out." in text
    # The model's accuracy is of all images, as `evaluate` says it.
    accuracy = str(evaluate_run(run, [ScoreSpec("msp")], replicates=0).accuracies["digits"])
    assert accuracy.endswith("% of 200 labelled images")
    assert f"ID accuracy {accuracy}" in page.root.one("header").text
    assert table_of(page.section("run"))[0]["Accuracy"] == accuracy
    assert "No set to fit to: the score learns from 100 ID images drawn by a fixed seed" in text
    assert "Score laplace_energy of the detector" in page.root.one("header").text


def test_images_that_taught_a_score_are_left_out_of_the_gallery(tmp_path):
    run = embedded_run(tmp_path / "run", limit=100)
    made = gs.Detector.calibrate(run, method="laplace_energy_blocks", tpr="0.9")
    made.save(tmp_path / "d.safetensors")
    page = Page(gs.report(run, tmp_path / "a.html", detector=tmp_path / "d.safetensors"))
    (part,) = [
        part
        for part in page.section("images").all("div", class_="gallery")
        if part.one("h3").text == "digits (ID)"
    ]
    names = gs.Run(run).paths("digits")
    taught = {names[row] for row in made.info.fit[0].rows}
    assert len(taught) == 50
    shown = {image.attributes["alt"] for image in part.all("img")}
    assert len(shown) > 12
    assert not shown & taught


@pytest.mark.parametrize(
    ("perfect", "which"), [(9, "9 of the 10 scores"), (10, "All 10 scores"), (7, None)]
)
def test_a_table_of_perfect_scores_is_one_sentence(tmp_path, perfect, which):
    ends = {"value": 12.0, "value_low": 11.0, "value_high": 13.0, "aurocs": {"classes 1": 1.0}}
    near = [
        {"method": "kl", "options": {"temperature": k + 1.0}, "tied": True}
        | (ends if k < perfect else ROW)
        for k in range(10)
    ]
    run = choose(drawn_run(tmp_path / "run"), near=near)
    page = Page(gs.report(run, tmp_path / "a.html", images=False))
    told = f"{which} tell these images apart without a mistake (100.0%): the table does not"
    assert (told in page.section("choice").text) == (which is not None)
    summaries = [part.text for part in page.section("choice").all("summary")]
    assert summaries == (["2 more scores"] if which is None else ["The table"])


def test_a_detector_and_a_method_are_one_too_many(run, tmp_path):
    file, _ = detector(tmp_path / "d.safetensors", run)
    with pytest.raises(InvalidArgument, match="Expected a detector or a method, got both"):
        gs.report(run, tmp_path / "a.html", detector=file, method="msp")
