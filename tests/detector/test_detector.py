"""A detector: calibrated from runs and images, saved, loaded, and asked."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.small_models import make_model
from torch.utils.data import DataLoader, TensorDataset

import gradscore as gs
from gradscore.data import open_set
from gradscore.detector import Detector
from gradscore.detector.file import write_detector
from gradscore.errors import (
    DetectorError,
    GradScoreError,
    InvalidArgument,
    NotRecorded,
    RunError,
)

LEARNED = ("laplace_energy_blocks", "knn", "vim", "mahalanobis", "react")
SCORES = (
    ("energy", {}),
    ("gradnorm", {}),
    ("gradnorm", {"layers": "block2"}),
    ("gradnorm", {"target": "one-hot", "p": 2.0}),
    *((method, {}) for method in LEARNED),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    sets = {"digits": ("id", "digits:test"), "unseen": ("ood", "digits:unseen")}
    return gs.extract("digits", sets, tmp_path_factory.mktemp("detector") / "run", layers="all")


@pytest.fixture(scope="module")
def model():
    return gs.create_model("digits")


@pytest.fixture(scope="module")
def images(model):
    return inputs(model, "digits:unseen", 120)


def inputs(model, name, count):
    pictures = open_set(name)
    return torch.stack([model.preprocessing(pictures[k]) for k in range(count)])


@pytest.mark.parametrize(("method", "options"), SCORES)
def test_live_scores_are_those_of_a_run(run, images, method, options):
    detector = Detector.calibrate(run, method=method, **options)
    decision = detector(images)
    fit = {"fit": "digits"} if method in LEARNED else {}
    if not fit:
        recorded = run.score("unseen", method, **options)[: len(images)]
        torch.testing.assert_close(decision.score, recorded, rtol=1e-5, atol=1e-6)
    assert decision.score.dtype == decision.p_value.dtype == torch.float64
    assert torch.equal(decision.accepted, decision.score >= detector.info.threshold.value)
    below = (detector.scores[None] <= decision.score[:, None]).sum(dim=1)
    torch.testing.assert_close(decision.p_value, (1 + below).double() / (len(detector.scores) + 1))
    torch.testing.assert_close(decision.logits, run.logits("unseen")[: len(images)])


def test_a_learned_score_learns_from_one_half_and_is_calibrated_on_the_other(run):
    detector = Detector.calibrate(run, method="laplace_energy")
    (calibration,), (fit,) = detector.info.calibration, detector.info.fit
    assert (calibration.images, fit.images) == (180, 181)
    assert set(calibration.rows) | set(fit.rows) == set(range(361))
    assert "learns from 181 ID images" in detector.info.notices[0]
    assert not detector.info.cross_fit


def test_halves_give_the_score_that_a_run_of_the_halves_would(run, model, tmp_path):
    detector = Detector.calibrate(run, method="laplace_energy_blocks")
    (calibration,), (fit,) = detector.info.calibration, detector.info.fit
    x = inputs(model, "digits:test", 361)
    by_hand = Detector.calibrate(
        model, x[list(calibration.rows)], method="laplace_energy_blocks", fit=x[list(fit.rows)]
    )
    np.testing.assert_allclose(by_hand.scores, detector.scores, rtol=1e-5)
    assert by_hand.info.fit[0].images == 181


def test_cross_fitted_scores_are_out_of_fold_and_called_approximate(run):
    detector = Detector.calibrate(run, method="knn", cross_fit=True)
    assert detector.info.cross_fit
    assert detector.info.threshold.images == detector.info.fit[0].images == 361
    assert "approximate" in detector.info.notices[0]
    in_sample = run.score("digits", "knn", fit="digits")
    assert not np.allclose(np.sort(in_sample), detector.scores)


@pytest.mark.parametrize("batches", ["tensor", "loader", "list", "generator"])
def test_images_in_memory_give_the_threshold_of_their_run(run, model, batches):
    x, y = inputs(model, "digits:test", 361), torch.zeros(361, dtype=torch.long)
    given = {
        "tensor": x,
        "loader": DataLoader(TensorDataset(x, y), batch_size=50),
        "list": [x[:200], x[200:]],
        "generator": (part for part in x.split(90)),
    }[batches]
    found = Detector.calibrate(model, given, method="gradnorm", layers="block4", tpr=0.9)
    expected = Detector.calibrate(run, method="gradnorm", layers="block4", tpr=0.9)
    assert found.info.threshold.images == 361
    assert found.info.threshold.rank == expected.info.threshold.rank
    assert found.info.threshold.value == pytest.approx(expected.info.threshold.value, rel=1e-5)
    assert (found.info.id_accuracy is None) == (batches != "loader")


@pytest.mark.parametrize("method", ["energy", "laplace_energy_blocks", "vim"])
def test_a_detector_comes_back_from_its_file_a_pickle_and_a_copy(run, images, method, tmp_path):
    detector = Detector.calibrate(run, method=method)
    detector.save(tmp_path / "d.safetensors")
    expected = detector(images)
    for other in (
        Detector.load(tmp_path / "d.safetensors"),
        Detector.load(tmp_path / "d.safetensors", "digits"),
        pickle.loads(pickle.dumps(detector)),
        copy.deepcopy(detector),
    ):
        assert other.info == detector.info
        assert all(map(torch.equal, other(images), expected))


def test_it_serves_threads_inference_mode_and_compilation(run, images):
    detector = Detector.calibrate(run, method="laplace_energy_blocks")
    expected = detector(images).score
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: detector(images[k : k + 6]).score, range(0, 120, 6)))
    torch.testing.assert_close(torch.cat(found), expected)
    with torch.inference_mode():
        decision = detector(images[:2])
    assert not decision.logits.is_inference()
    assert torch.equal(torch.compile(detector)(images[:2]).score, decision.score)


@pytest.mark.parametrize("method", ["energy", "gradnorm"])
def test_the_autocast_of_a_caller_changes_neither_calibration_nor_decisions(model, images, method):
    expected = Detector.calibrate(model, images, method=method)
    decision = expected(images[:7])
    with torch.autocast("cpu", torch.bfloat16):
        found = Detector.calibrate(model, images, method=method)
        assert torch.equal(expected(images[:7]).score, decision.score)
    assert found.info.threshold == expected.info.threshold


def test_no_graph_that_freezes_its_numbers_is_traced(run, images):
    detector = Detector.calibrate(run, method="energy")
    with pytest.raises(DetectorError, match=r"Expected `detector.export\('gate.onnx'\)`"):
        torch.export.export(detector, (images[:2],))
    with (
        pytest.warns((DeprecationWarning, FutureWarning), match="is deprecated"),
        pytest.raises(DetectorError, match=r"torch.jit.trace or torch.export"),
    ):
        torch.jit.trace(detector, images[:2])


def test_no_image_gives_no_decision(run):
    decision = Detector.calibrate(run)(torch.zeros(0, 1, 8, 8))
    assert [tuple(values.shape) for values in decision] == [(0, 6), (0,), (0,), (0,)]


def test_thresholds_of_other_rates_come_from_the_stored_scores(run):
    detector = Detector.calibrate(run)
    kept = detector.threshold()
    assert kept == detector.info.threshold
    strict = detector.threshold(tpr=0.98)
    assert strict.value < kept.value
    assert strict.value == float(detector.scores[strict.rank - 1])
    assert detector.threshold(guarantee="marginal").rank == 18
    with pytest.raises(InvalidArgument, match="at least 2,995 images"):
        detector.threshold(tpr=0.999)


def test_its_repr_says_score_threshold_and_promise(run):
    text = repr(Detector.calibrate(run))
    assert text.startswith("Detector('energy', temperature=1.0, threshold=3.98")
    assert "at most 5% of images like these are flagged; 361 calibration images" in text


def test_what_is_doubtful_is_told(model):
    x = inputs(model, "digits:test", 120)
    told = " ".join(Detector.calibrate(model, torch.cat([x, x])).info.notices)
    assert "120 of 240 calibration images are copies of others" in told
    assert "2 calibration scores equal the threshold" in told
    right = model(x).argmax(dim=1)
    told = Detector.calibrate(model, [(x, right)]).info.notices
    assert any("all 120 images are classified rightly" in notice for notice in told)


def refusals(run, model, images):
    random = gs.create_model("digits", "random")
    energy = Detector.calibrate(run)
    return {
        "other weights": (lambda: Detector(random, energy.info, energy.arrays), "got others"),
        "one image": (lambda: energy(images[0]), r"images \[batch, 1, 8, 8\].*got \[1, 8, 8\]"),
        "no tensor": (lambda: energy([1]), "got a list"),
        "raw pixels": (
            lambda: energy((255 * images[:2]).byte()),
            r"preprocessed as .* got torch.uint8 \[2, 1, 8, 8\]",
        ),
        "NaN": (lambda: energy(torch.full((2, 1, 8, 8), torch.nan)), "others for image 0"),
        "too few": (lambda: Detector.calibrate(model, images[:58]), "at least 59 .* got 58"),
        "no images": (lambda: Detector.calibrate(model), "give `images`"),
        "text": (lambda: Detector.calibrate(model, "digits"), "batches of such, got str of str"),
        "odin": (
            lambda: Detector.calibrate(run, method="odin", epsilon=0.1),
            "one forward gives, got odin with epsilon",
        ),
        "stages": (lambda: Detector.calibrate(run, method="mahalanobis_stages"), "choose one of"),
        "OOD": (lambda: Detector.calibrate(run, "unseen"), "'unseen' with the role ood"),
        "unknown set": (lambda: Detector.calibrate(run, "mars"), "the run holds: digits, unseen"),
        "in-sample": (
            lambda: Detector.calibrate(run, method="knn", fit="digits"),
            "other images to learn from",
        ),
        "learns nothing": (lambda: Detector.calibrate(run, fit="unseen"), "learns from no images"),
        "both": (
            lambda: Detector.calibrate(run, method="knn", fit="unseen", cross_fit=True),
            "got both",
        ),
        "other settings": (
            lambda: Detector.calibrate(run, method="gradnorm", layers="block1", p=3.0),
            "holds no gradient norms of block1",
        ),
        "images for nothing": (
            lambda: Detector.calibrate(model, images, fit=images),
            "learns from no images",
        ),
        "a run and preprocessing": (
            lambda: Detector.calibrate(run, preprocessing={"mean": 0.5}),
            "`preprocessing` with a model only",
        ),
        "two models": (lambda: Detector.calibrate(model, images, model=model), "with a run only"),
        "few to learn": (
            lambda: Detector.calibrate(model, images[:59], method="knn"),
            "at least 30 images to learn from, got 29|at least 59",
        ),
    }


@pytest.mark.parametrize(
    "case",
    [
        *("other weights", "one image", "no tensor", "raw pixels", "NaN", "too few"),
        *("no images", "text"),
        *("odin", "stages", "OOD", "unknown set", "in-sample", "learns nothing", "both"),
        *("images for nothing", "a run and preprocessing", "two models"),
        *("other settings", "few to learn"),
    ],
)
def test_what_cannot_be_is_one_line(run, model, images, case):
    act, message = refusals(run, model, images)[case]
    with pytest.raises((DetectorError, InvalidArgument, NotRecorded, RunError), match=message):
        act()


def test_weights_that_change_are_noticed(run, images):
    detector = Detector.calibrate(run)
    with torch.no_grad():
        detector.model.fc.bias.add_(1)
    with pytest.raises(DetectorError, match="Expected the weights"):
        detector(images[:2])


def test_a_file_never_names_code_that_is_run_unasked(run, model, tmp_path):
    detector = Detector.calibrate(model, inputs(model, "digits:test", 361))
    module = "python:os:system?command=false"
    detector.info = replace(detector.info, model=module)
    detector.save(tmp_path / "d.safetensors")
    with pytest.raises(DetectorError, match="is built only where you name it"):
        Detector.load(tmp_path / "d.safetensors")
    assert Detector.load(tmp_path / "d.safetensors", model).info.model == module


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    detector = Detector.calibrate(run, method="knn")
    path = tmp_path_factory.mktemp("saved") / "d.safetensors"
    detector.save(path)
    return detector, path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "python:os:abort"}, "'python:os:abort', which is code: it is imported only"),
        ({"method": "odin", "settings": {"epsilon": 0.1}}, "one forward gives, got odin with"),
        ({"method": "mahalanobis_stages", "settings": {}}, "one forward gives, got mahal"),
        ({"method": "odd"}, "Unknown method 'odd'"),
        ({"settings": {"k": "ten"}}, "Expected k of 1 or more, got 'ten'"),
        ({"settings": {"strange": 1}}, "Unknown option strange"),
        ({"settings": {"k": 10**6}}, "Expected k of 1 to 181"),
        ({"preprocessing": {"resize": None}}, "Expected the fields of a preprocessing"),
        ({"classes": 7}, "Expected a model of 7 classes"),
        ({"head_sha256": "0" * 64}, "Expected the last layer"),
        ({"weights_sha256": "0" * 64}, "Expected the weights"),
        ({"weights": "/absent.safetensors"}, "No weight file"),
        ({"method": "vim", "settings": {}}, "its score cannot be computed"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_one_line(saved, tmp_path, change, message):
    detector, _ = saved
    path = tmp_path / "d.safetensors"
    write_detector(path, replace(detector.info, **change), detector.arrays)
    with pytest.raises(GradScoreError, match=message) as caught:
        Detector.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(181, 3), (20, 65)])
def test_what_was_learned_may_be_anything_and_is_tried_first(saved, tmp_path, shape):
    detector, _ = saved
    path = tmp_path / "d.safetensors"
    arrays = {n: np.ones(shape) if n.endswith("bank") else x for n, x in detector.arrays.items()}
    write_detector(path, detector.info, arrays)
    with pytest.raises(GradScoreError, match="damaged: its score cannot"):
        Detector.load(path)


def test_a_model_that_makes_pictures_ready_otherwise_is_refused(saved):
    _, path = saved
    model = gs.create_model("digits")
    model.preprocessing = model.preprocessing.with_overrides(mean=0.5)
    with pytest.raises(DetectorError, match="Expected a model of the preprocessing of"):
        Detector.load(path, model)


def test_a_spec_gives_a_model_of_the_recorded_preprocessing(saved, tmp_path):
    detector, _ = saved
    path = tmp_path / "d.safetensors"
    kept = {**detector.info.preprocessing, "mean": [0.5]}
    write_detector(path, replace(detector.info, preprocessing=kept), detector.arrays)
    assert Detector.load(path).model.preprocessing.mean == (0.5,)


def test_pictures_of_unknown_normalisation_are_told_of():
    model, x = make_model(), torch.rand(80, 1, 8, 8)
    del model.preprocessing
    (told,) = Detector.calibrate(model, x, method="energy").info.notices
    assert "nothing is known of how pictures become the model's input" in told
    how = {"resize": None, "crop": None, "mean": 0.5, "std": 0.5, "mode": "L"}
    assert Detector.calibrate(model, x, method="energy", preprocessing=how).info.notices == ()
