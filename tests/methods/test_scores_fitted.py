"""Methods that learn from a set of the run, against scikit-learn and the paper's equation."""

import numpy as np
import pytest
import torch
from helpers.recorded_run import drawn_norms, drawn_set, make_run
from helpers.transcriptions import literal_confidence
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from gradscore.errors import InvalidArgument, ModelError, NotRecorded, RunError
from gradscore.evaluation import evaluate_run
from gradscore.methods import ScoreSpec
from gradscore.methods.lee_alregib import CLASSIFIER, fit_classifier, log_odds
from gradscore.models.preprocessing import Preprocessing
from gradscore.recorded import Run, extract
from gradscore.run import RunStore, check
from gradscore.scoring import score_sets


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(make_run(tmp_path_factory.mktemp("runs") / "run"))


def test_mahalanobis_is_the_papers_equation(run):
    train = drawn_set("train")
    known = train["label"] >= 0
    x, y = train["features"][known].astype(np.float64), train["label"][known]
    scored = score_sets(run.store, ["digits", "noise"], [ScoreSpec("mahalanobis", fit="train")])
    for name, scores in scored.items():
        z = drawn_set(name)["features"].astype(np.float64)
        expected = literal_confidence(z, x, y)
        np.testing.assert_allclose(scores.columns["mahalanobis"], expected, rtol=1e-9)


def test_one_option_serves_both_fitted_methods(confounded):
    alone = confounded.score("digits", "mahalanobis", fit="train")
    assert torch.equal(confounded.score("digits", "mahalanobis", fit="train,photos"), alone)


def test_the_set_to_fit_to_is_no_part_of_the_evaluation(run):
    specs = [ScoreSpec("msp"), ScoreSpec("mahalanobis", fit="train")]
    rows = evaluate_run(run, specs, replicates=0).rows
    assert [row["ood"] for row in rows] == ["noise", "photos", "mean"] * 2
    assert [row["fit"] for row in rows] == [None] * 3 + ["train"] * 3


def test_a_spec_names_the_sets_that_it_learns_from():
    assert ScoreSpec("msp").fit_sets() == ()
    for method in ("mahalanobis", "mahalanobis_stages"):
        assert ScoreSpec(method, fit="train,photos").fit_sets() == ("train",)
    both = ScoreSpec("lee_alregib", fit="train,photos")
    assert both.fit_sets() == ("train", "photos")


def test_what_cannot_be_fitted_is_refused(run, tmp_path):
    with pytest.raises(InvalidArgument, match=r"needs the option fit; give `fit=FIT`\."):
        ScoreSpec("mahalanobis")
    with pytest.raises(InvalidArgument, match=r"Unknown set 'absent' to fit to; .* digits, noise"):
        run.score("digits", "mahalanobis", fit="absent")
    with pytest.raises(RunError, match="no row of set 'photos' has one"):
        run.score("digits", "mahalanobis", fit="photos")

    def beyond(name, arrays):
        arrays["label"][7] = 5

    spoilt = Run(make_run(tmp_path / "spoilt", change=beyond))
    with pytest.raises(RunError, match="labels of 0 to 4 in set 'train', got 5"):
        spoilt.score("digits", "mahalanobis", fit="train")
    bare = Run(make_run(tmp_path / "run", closed_form=False))
    with pytest.raises(ModelError, match="Expected logits that are W x"):
        bare.score("digits", "mahalanobis", fit="train")


@pytest.fixture(scope="module")
def confounded(tmp_path_factory):
    passes = (("uniform", 1.0, 1.0), ("all-ones", 1.0, 2.0))
    return Run(make_run(tmp_path_factory.mktemp("runs") / "run", passes=passes))


def test_lee_alregib_classifies_squared_norms(confounded):
    sides = [np.square(2 * drawn_norms(name).astype(float)) for name in ("train", "photos")]
    x, y = np.concatenate(sides), np.repeat([1, 0], [len(side) for side in sides])
    model = make_pipeline(StandardScaler(), MLPClassifier(**CLASSIFIER)).fit(x, y)
    log_p = model.predict_log_proba(np.square(2 * drawn_norms("noise").astype(float)))
    got = confounded.score("noise", "lee_alregib", fit="train,photos")
    np.testing.assert_allclose(got, log_p[:, 1] - log_p[:, 0], rtol=1e-6, atol=1e-9)


def test_lee_alregib_tells_apart_what_no_plane_does(confounded):
    rng = np.random.default_rng(0)
    noise = rng.uniform(0, 1, (200, 2))
    ids = rng.uniform(0, 1, (200, 2)) + rng.choice([-2, 2], (200, 1))
    classifier = fit_classifier(ids, noise)
    assert (log_odds(classifier, ids) > 0).all()
    assert (log_odds(classifier, noise) < 0).all()


FITTED = {"mahalanobis": "train", "lee_alregib": "train,photos"}


def fit_files(path):
    return {file.name: file.read_bytes() for file in sorted((path / "fits").iterdir())}


def scored_run(path):
    passes = (("uniform", 1.0, 1.0), ("all-ones", 1.0, 2.0))
    make_run(path, passes=passes)
    return {method: Run(path).score("noise", method, fit=fit) for method, fit in FITTED.items()}


def test_a_fit_is_stored_once_and_two_fits_are_equal(tmp_path, monkeypatch):
    first = scored_run(tmp_path / "run")
    scored_run(tmp_path / "other")
    files = fit_files(tmp_path / "run")
    assert files == fit_files(tmp_path / "other")
    assert [name.rsplit("-", 1)[0] for name in files] == [
        "lee_alregib-train-photos",
        "mahalanobis-train",
    ]
    assert check(tmp_path / "run") == []

    def never(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr("gradscore.methods.mahalanobis.fit_streamed_gaussians", never)
    monkeypatch.setattr("gradscore.methods.lee_alregib.fit_classifier", never)
    for method, fit in FITTED.items():
        again = Run(tmp_path / "run").score("noise", method, fit=fit)
        assert torch.equal(again, first[method])
    with pytest.raises(AssertionError, match="fitted again"):
        Run(tmp_path / "run").score("noise", "mahalanobis", fit="digits")


def test_a_changed_setting_is_another_fit(tmp_path, monkeypatch):
    scored_run(tmp_path / "run")
    monkeypatch.setitem(CLASSIFIER, "alpha", 2.0)
    Run(tmp_path / "run").score("noise", "lee_alregib", fit="train,photos")
    Run(tmp_path / "run").score("noise", "lee_alregib", fit="train,noise")
    names = [name.rsplit("-", 1)[0] for name in fit_files(tmp_path / "run")]
    assert names.count("lee_alregib-train-photos") == 2
    assert names.count("lee_alregib-train-noise") == 1


def test_a_run_in_use_is_scored_without_storing_the_fit(tmp_path):
    make_run(tmp_path / "run")
    with RunStore.open_for_writing(tmp_path / "run"):
        scores = Run(tmp_path / "run").score("noise", "mahalanobis", fit="train")
    assert not (tmp_path / "run" / "fits").exists()
    assert torch.equal(Run(tmp_path / "run").score("noise", "mahalanobis", fit="train"), scores)
    assert len(fit_files(tmp_path / "run")) == 1


def test_a_damaged_fit_is_refused_by_name(tmp_path):
    scored_run(tmp_path / "run")
    file = next((tmp_path / "run" / "fits").glob("mahalanobis-*"))
    file.write_bytes(file.read_bytes()[:-1])
    assert [problem.file for problem in check(tmp_path / "run")] == [f"fits/{file.name}"]
    with pytest.raises(RunError, match=r"mahalanobis-train-\w+.safetensors is damaged"):
        Run(tmp_path / "run").score("noise", "mahalanobis", fit="train")


def test_recorded_norms_are_those_of_the_confounding_label(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4)).eval()
    images = np.random.default_rng(0).random((5, 3, 2, 2), dtype=np.float32)
    np.savez(tmp_path / "images.npz", images=images)
    store = extract(
        model,
        {"id": ("id", tmp_path / "images.npz")},
        tmp_path / "run",
        p=(2.0,),
        target=("all-ones",),
        preprocessing=Preprocessing(None, None, (0, 0, 0), (1, 1, 1)),
    ).store
    (block,) = store.blocks("id", fields=("index",), norms=("norms-all-ones-T1-p2",))
    for row, image in zip(block["norms-all-ones-T1-p2"], images, strict=True):
        logits = model(torch.from_numpy(image)[None])
        loss = binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        np.testing.assert_allclose(row, [grad.norm() for grad in grads], rtol=1e-5)


def test_what_lee_alregib_cannot_learn_from_is_refused(run, confounded):
    with pytest.raises(NotRecorded, match="--layers all -p 2 -T 1 --target all-ones`"):
        run.score("digits", "lee_alregib", fit="train,noise")
    with pytest.raises(NotRecorded, match="expected fit as ID,NOISE, got 'train'"):
        confounded.score("digits", "lee_alregib", fit="train")
    with pytest.raises(InvalidArgument, match="Unknown set 'absent' to fit to"):
        confounded.score("digits", "lee_alregib", fit="train,absent")
    assert confounded.score("digits", "lee_alregib", fit="train,noise").shape == (40,)


def test_a_kept_module_answers_what_was_not_recorded(tmp_path):
    store = extract(
        "digits",
        {"photos": ("ood", "digits:photos")},
        tmp_path / "run",
        keep=("block4",),
        p=(1.0, 2.0),
        temperature=(1.0, 3.0),
        limit=9,
    ).store
    spec = ScoreSpec("gradnorm", layers="block4", p=2, temperature=3)
    recorded = score_sets(store, ["photos"], [spec])["photos"].columns["gradnorm"]
    del store.info.passes["norms-uniform-T3-p2"]
    replayed = score_sets(store, ["photos"], [spec])["photos"].columns["gradnorm"]
    np.testing.assert_allclose(replayed, recorded, rtol=1e-5)
    with pytest.raises(NotRecorded, match="--layers block1 -p 2 -T 3"):
        score_sets(store, ["photos"], [ScoreSpec("gradnorm", layers="block1", p=2, temperature=3)])
