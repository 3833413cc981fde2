"""Methods that learn from a set of the run, against scikit-learn and the paper's equation."""

import numpy as np
import pytest
import torch
from recorded_run import drawn_norms, drawn_set, make_run
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from gradscore.errors import InvalidArgument, ModelError, NotRecorded, RunError
from gradscore.evaluation import evaluate_run
from gradscore.extraction import extract
from gradscore.models.preprocessing import Preprocessing
from gradscore.recorded import Run
from gradscore.scores import Question
from gradscore.scores.answer import score_sets
from gradscore.scores.mahalanobis import fit_gaussians


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(make_run(tmp_path_factory.mktemp("runs") / "run"))


def literal_mahalanobis(z, features, labels):
    """Lee et al., Eqs. 1 and 2, over the classes that have a row."""
    known = labels >= 0
    x, y = features[known].astype(np.float64), labels[known]
    classes = np.unique(y)
    means = np.stack([x[y == c].mean(0) for c in classes])
    centred = x - means[np.searchsorted(classes, y)]
    precision = EmpiricalCovariance(assume_centered=True).fit(centred).precision_
    distances = [((z - mu) @ precision * (z - mu)).sum(1) for mu in means]
    return -0.5 * np.min(distances, axis=0)


def test_mahalanobis_is_the_papers_equation(run):
    train = drawn_set("train")
    scored = score_sets(run.store, ["digits", "noise"], [Question("mahalanobis", fit="train")])
    for name, scores in scored.items():
        z = drawn_set(name)["features"].astype(np.float64)
        expected = literal_mahalanobis(z, train["features"], train["label"])
        np.testing.assert_allclose(scores.columns["mahalanobis"], expected, rtol=1e-9)


def test_a_singular_covariance_has_a_pseudo_inverse():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6))
    x[:, 4], x[:, 5] = x[:, 0], 0
    y = np.repeat([0, 2, 3], 10)
    fitted = fit_gaussians([torch.from_numpy(x)], [torch.from_numpy(y)], 5)
    assert fitted.means.shape == (3, 6)
    got = fitted.score(torch.from_numpy(x[:7]))
    np.testing.assert_allclose(got, literal_mahalanobis(x[:7], x, y), rtol=1e-9)


def test_blocks_of_features_give_the_same_fit():
    x, y = torch.randn(40, 3, dtype=torch.float64), torch.arange(40) % 4
    whole = fit_gaussians([x], [y], 4)
    parts = fit_gaussians(list(x.split(7)), list(y.split(7)), 4)
    torch.testing.assert_close(parts.precision, whole.precision)
    torch.testing.assert_close(parts.score(x), whole.score(x))


def test_one_option_serves_both_fitted_methods(confounded):
    alone = confounded.score("digits", "mahalanobis", fit="train")
    assert torch.equal(confounded.score("digits", "mahalanobis", fit="train,photos"), alone)


def test_the_set_to_fit_to_is_no_part_of_the_evaluation(run):
    questions = [Question("msp"), Question("mahalanobis", fit="train")]
    rows = evaluate_run(run, questions, replicates=0).rows
    assert [row["ood"] for row in rows] == ["noise", "photos", "mean"] * 2
    assert [row["fit"] for row in rows] == [None] * 3 + ["train"] * 3


def test_what_cannot_be_fitted_is_refused(run, tmp_path):
    with pytest.raises(InvalidArgument, match="mahalanobis needs the option fit"):
        Question("mahalanobis")
    with pytest.raises(InvalidArgument, match=r"Unknown set 'absent' to fit to; .* digits, noise"):
        run.score("digits", "mahalanobis", fit="absent")
    with pytest.raises(RunError, match="no row of set 'photos' has one"):
        run.score("digits", "mahalanobis", fit="photos")
    with pytest.raises(InvalidArgument, match="labelled rows to fit to, got none"):
        fit_gaussians([torch.zeros(0, 3)], [torch.zeros(0, dtype=torch.long)], 2)
    bare = Run(make_run(tmp_path / "run", closed_form=False))
    with pytest.raises(ModelError, match="needs logits"):
        bare.score("digits", "mahalanobis", fit="train")


@pytest.fixture(scope="module")
def confounded(tmp_path_factory):
    passes = (("uniform", 1.0, 1.0), ("all-ones", 1.0, 2.0))
    return Run(make_run(tmp_path_factory.mktemp("runs") / "run", passes=passes))


def test_lee_alregib_classifies_squared_norms(confounded):
    sides = [np.square(2 * drawn_norms(name).astype(float)) for name in ("train", "photos")]
    x, y = np.concatenate(sides), np.repeat([1, 0], [len(side) for side in sides])
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(x), y)
    z = np.square(2 * drawn_norms("noise").astype(float))
    got = confounded.score("noise", "lee_alregib", fit="train,photos")
    np.testing.assert_allclose(got, model.decision_function(scaler.transform(z)), rtol=1e-9)


def test_recorded_norms_are_those_of_the_confounding_label(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 4)).eval()
    images = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32)
    np.savez(tmp_path / "images.npz", images=images)
    store = extract(
        model,
        {"id": ("id", tmp_path / "images.npz")},
        tmp_path / "run",
        p=(2.0,),
        target=("all-ones",),
        preprocessing=Preprocessing(None, None, (0, 0, 0), (1, 1, 1)),
    )
    (block,) = store.blocks("id", fields=("index",), norms=("norms-all-ones-T1-p2",))
    for row, image in zip(block["norms-all-ones-T1-p2"], images, strict=True):
        logits = model(torch.from_numpy(image)[None])
        loss = binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        np.testing.assert_allclose(row, [grad.norm() for grad in grads], rtol=1e-5)


def test_what_lee_alregib_cannot_learn_from_is_refused(run, confounded):
    with pytest.raises(NotRecorded, match="`gradscore extract --target all-ones -p 2"):
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
    )
    question = Question("gradnorm", layers="block4", p=2, temperature=3)
    recorded = score_sets(store, ["photos"], [question])["photos"].columns["gradnorm"]
    del store.info.passes["norms-uniform-T3-p2"]
    replayed = score_sets(store, ["photos"], [question])["photos"].columns["gradnorm"]
    np.testing.assert_allclose(replayed, recorded, rtol=1e-5)
    with pytest.raises(NotRecorded, match="extract --layers block1 -p 2 -T 3"):
        score_sets(store, ["photos"], [Question("gradnorm", layers="block1", p=2, temperature=3)])
