"""Scores of features as an outlier detector of scikit-learn."""

import pickle

import numpy as np
import pytest
import torch
from helpers import detectors as literal
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

import gradscore as gs
from gradscore.interop.sklearn import GradNormOutlier

RNG = np.random.default_rng(0)
X, NEW = RNG.exponential(size=(200, 6)), RNG.exponential(size=(50, 6))
W, B = RNG.normal(size=(4, 6)), RNG.normal(size=4)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_the_contract_of_an_outlier_detector_is_kept():
    check_estimator(GradNormOutlier())


def test_scores_are_those_of_the_closed_form_with_the_given_head():
    detector = GradNormOutlier(W, B, options={"p": 2.0, "temperature": 3.0}).fit(X)
    features, logits = torch.from_numpy(NEW), torch.from_numpy(NEW @ W.T + B)
    expected = gs.last_layer_score(features, logits, p=2.0, temperature=3.0)
    np.testing.assert_allclose(detector.score_samples(NEW), expected.numpy(), rtol=1e-12)
    assert detector.n_features_in_ == 6


def test_the_threshold_is_a_quantile_of_the_training_scores():
    detector = GradNormOutlier(W, B, contamination=0.1).fit(X)
    scores = detector.score_samples(X)
    assert detector.offset_ == np.percentile(scores, 10)
    np.testing.assert_array_equal(
        detector.decision_function(NEW), detector.score_samples(NEW) - detector.offset_
    )
    np.testing.assert_array_equal(detector.predict(X), np.where(scores < detector.offset_, -1, 1))
    assert (detector.fit_predict(X) == -1).sum() == 20


def test_other_methods_learn_from_the_training_features():
    detector = GradNormOutlier(W, B, method="laplace_energy").fit(X)
    expected = literal.laplace_energy(NEW, NEW @ W.T + B, X, X @ W.T + B)
    np.testing.assert_allclose(detector.score_samples(NEW), expected, rtol=1e-6)
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.score_samples(NEW), detector.score_samples(NEW))
    assert clone(detector).get_params()["method"] == "laplace_energy"


def test_the_training_features_are_not_kept():
    many = np.tile(X, (50, 1))
    assert len(pickle.dumps(GradNormOutlier(W, B, method="fdbd").fit(many))) < many.nbytes / 10


def test_a_head_is_fitted_to_classes_where_none_is_given():
    digits, labels = load_digits(return_X_y=True)
    known = labels < 8
    detector = make_pipeline(MinMaxScaler(), GradNormOutlier())
    detector.fit(digits[known], labels[known])
    assert detector[-1]._run.info.classes == 8
    scores = detector.score_samples(digits)
    assert gs.evaluate(scores[known], scores[~known]).auroc.value > 0.8
    two = GradNormOutlier().fit(X, X[:, 0] > 1)
    np.testing.assert_allclose(*two._run.head()["weight"] * [[1], [-1]])


@pytest.mark.parametrize("contamination", [0.0, -0.1, 0.6])
def test_a_share_that_is_none_is_refused(contamination):
    with pytest.raises(ValueError, match=r"Expected contamination in \(0, 0\.5\]"):
        GradNormOutlier(W, B, contamination=contamination).fit(X)


def test_a_head_of_other_features_and_an_unknown_method_are_one_line():
    with pytest.raises(gs.InvalidArgument, match="Unknown method 'no'"):
        GradNormOutlier(W, B, method="no").fit(X)
    with pytest.raises(gs.InvalidArgument, match=r"Expected features \[rows, 5\]"):
        GradNormOutlier(W[:, :5]).fit(X)
    with pytest.raises(gs.GradScoreError, match=r"No stages were found"):
        GradNormOutlier(W, B, method="laplace_energy_blocks").fit(X)
