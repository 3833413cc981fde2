"""The rank is exact, the promise is kept under ties, and clean data is not called drift."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from gradscore.detector.threshold import (
    Threshold,
    drift_p_value,
    flag_rank,
    p_values,
    share_interval,
)
from gradscore.errors import InvalidArgument


def slow_rank(images, alpha, confidence):
    """Return the PAC rank by sums of fractions alone."""
    tail, rank = Fraction(1), 0
    for k in range(1, images + 1):
        tail -= math.comb(images, k - 1) * alpha ** (k - 1) * (1 - alpha) ** (images - k + 1)
        if tail < confidence:
            break
        rank = k
    return rank


@pytest.mark.parametrize("images", [59, 60, 100, 333, 1000])
@pytest.mark.parametrize("tpr", ["0.95", "0.9", "0.5"])
@pytest.mark.parametrize("confidence", ["0.95", "0.5", "0.9"])
def test_the_pac_rank_is_that_of_exact_fractions(images, tpr, confidence):
    expected = slow_rank(images, 1 - Fraction(tpr), Fraction(confidence))
    assert flag_rank(images, float(tpr), confidence=float(confidence)) == expected


def test_a_tie_with_the_confidence_is_decided_by_integers():
    # P(at least 501 of 1001 fair coins) is one half exactly.
    assert flag_rank(1001, 0.5, confidence=0.5) == 501


@pytest.mark.parametrize(
    ("images", "tpr", "rank"), [(1000, 0.95, 50), (999, 0.9, 100), (19, 0.95, 1), (99, 0.01, 99)]
)
def test_the_marginal_rank_is_split_conformal_in_integers(images, tpr, rank):
    assert flag_rank(images, tpr, guarantee="marginal") == rank


@pytest.mark.parametrize(
    ("tpr", "guarantee", "fewest"),
    [
        (0.95, "pac", 59),
        (0.99, "pac", 299),
        (0.999, "pac", 2995),
        (0.95, "marginal", 19),
        (0.99, "marginal", 99),
    ],
)
def test_too_few_images_are_refused_with_the_number_that_would_do(tpr, guarantee, fewest):
    assert flag_rank(fewest, tpr, guarantee=guarantee) == 1
    with pytest.raises(InvalidArgument, match=f"at least {fewest:,} images") as caught:
        flag_rank(fewest - 1, tpr, guarantee=guarantee)
    assert f"got {fewest - 1:,}" in str(caught.value)


def test_no_image_at_all_is_refused():
    with pytest.raises(InvalidArgument, match="at least 59 images"):
        Threshold.of([])


@pytest.mark.parametrize("wrong", [0, 1, 1.5, -0.1, "a", float("nan"), "1e-999999999", "1/0"])
def test_shares_outside_of_zero_and_one_are_refused(wrong):
    with pytest.raises(InvalidArgument, match="Expected `tpr` between 0 and 1"):
        flag_rank(100, wrong)
    with pytest.raises(InvalidArgument, match="Expected `confidence` between 0 and 1"):
        flag_rank(100, confidence=wrong)


def test_an_unknown_guarantee_is_refused():
    with pytest.raises(InvalidArgument, match="Expected guarantee pac or marginal"):
        flag_rank(100, guarantee="sure")


@pytest.mark.parametrize("scores", [[1.0, np.nan], [[1.0, 2.0]], [np.inf] * 100])
def test_scores_that_are_no_finite_vector_are_refused(scores):
    with pytest.raises(InvalidArgument, match="Expected finite scores"):
        Threshold.of(scores)


def test_below_the_threshold_is_the_same_as_a_small_p_value():
    rng = np.random.default_rng(0)
    calibration = np.sort(rng.integers(0, 40, 500) / 8.0)
    found = Threshold.of(calibration)
    new = rng.integers(-5, 45, 1000) / 8.0
    small = p_values(new, calibration) <= found.rank / (found.images + 1)
    assert np.array_equal(new < found.value, small)


def test_what_the_calibration_images_themselves_do_is_told():
    found = Threshold.of(range(1000))
    assert (found.value, found.rank, found.flagged, found.ties) == (38.0, 39, 38, 1)
    tied = Threshold.of([0.0] * 30 + [1.0] * 970)
    assert (tied.value, tied.flagged, tied.ties) == (1.0, 30, 970)


def test_under_ties_nothing_at_the_threshold_is_flagged():
    constant = Threshold.of([2.0] * 200)
    assert constant.flagged == 0
    assert constant.ties == 200


def test_the_promise_stands_in_words():
    scores = range(1000)
    assert Threshold.of(scores, 0.99).promise() == (
        "with 95% confidence at most 1% of images like these are flagged"
    )
    assert Threshold.of(scores, 0.9, guarantee="marginal").promise() == (
        "on average at most 10% of images like these are flagged"
    )


@pytest.mark.parametrize("images", [1, 7, 100, 5000])
@pytest.mark.parametrize("share", [0, 0.01, 0.05, 0.1, 1])
def test_drift_is_the_tail_of_the_beta_binomial(images, share):
    found = Threshold.of(range(1000))
    flagged = round(share * images)
    expected = stats.betabinom.pmf(np.arange(flagged, images + 1), images, 39, 1001 - 39).sum()
    assert drift_p_value(flagged, images, found) == pytest.approx(expected, rel=1e-6)


def test_a_large_batch_is_summed_in_parts():
    found = Threshold.of(range(1000))
    assert drift_p_value(0, 5_000_000, found) == 1
    assert drift_p_value(195_000, 5_000_000, found) == pytest.approx(0.48, abs=0.05)
    assert drift_p_value(5_000_000, 5_000_000, found) < 1e-300


def test_the_interval_of_a_share_is_clopper_and_pearsons():
    found = share_interval(7, 120)
    expected = stats.binomtest(7, 120).proportion_ci(method="exact")
    assert found == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert share_interval(0, 10)[0] == 0
    assert share_interval(10, 10)[1] == 1
