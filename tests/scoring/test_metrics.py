"""The metrics against scikit-learn and brute force; the bootstrap against plain resampling."""

import math

import numpy as np
import pytest
from helpers.memory import peak_bytes
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from gradscore import metrics, resampling
from gradscore.choices import METRICS
from gradscore.errors import InvalidArgument
from gradscore.evaluation import evaluate
from gradscore.metrics import (
    aupr_in,
    aupr_out,
    auroc,
    fpr95,
    keeping_threshold,
    point_metrics,
)
from gradscore.resampling import bootstrap, bootstrap_aurocs, interval

RNG = np.random.default_rng(0)
CASES = {
    "apart": (RNG.normal(2, 1, 300), RNG.normal(0, 1, 200)),
    "reversed": (RNG.normal(-3, 1, 50), RNG.normal(0, 1, 70)),
    "many ties": (RNG.integers(0, 5, 400) / 1.0, RNG.integers(-1, 4, 300) / 1.0),
    "all tied": (np.ones(13), np.ones(7)),
    "one each": (np.array([1.0]), np.array([0.0])),
    "one each, wrong": (np.array([0.0]), np.array([1.0])),
    "one ID": (np.array([0.3]), RNG.normal(size=30)),
    "one OOD": (RNG.normal(size=41), np.array([0.1])),
    "twenty": (np.arange(20.0), np.arange(20.0)),
    "tiny values": (RNG.normal(2, 1, 60) * 1e-30, RNG.normal(0, 1, 60) * 1e-30),
    "negative": (-RNG.exponential(1, 100), -RNG.exponential(3, 100)),
}
case = pytest.mark.parametrize(("ids", "oods"), CASES.values(), ids=CASES.keys())


def brute_force_fpr95(ids, oods):
    thresholds = [t for t in ids if (ids >= t).mean() >= 0.95 - 1e-12]
    return (oods >= max(thresholds)).mean()


@case
def test_equal_scikit_learn(ids, oods):
    truth = np.repeat([1, 0], [len(ids), len(oods)])
    # scikit-learn 1.3 and later rank values apart that differ by less than 1e-8: ranks are safe.
    ranks = np.unique(np.concatenate([ids, oods]), return_inverse=True)[1].astype(float)
    assert auroc(ids, oods) == pytest.approx(roc_auc_score(truth, ranks), abs=1e-14)
    expected = average_precision_score(truth, ranks)
    assert aupr_in(ids, oods) == pytest.approx(expected, abs=1e-14)
    expected = average_precision_score(1 - truth, -ranks)
    assert aupr_out(ids, oods) == pytest.approx(expected, abs=1e-14)


@case
def test_equal_brute_force(ids, oods):
    pairs = ids[:, None] - oods[None]
    assert auroc(ids, oods) == pytest.approx((np.sign(pairs) / 2 + 0.5).mean(), abs=1e-14)
    assert fpr95(ids, oods) == pytest.approx(brute_force_fpr95(ids, oods), abs=1e-15)


def counted_plainly(ids, oods):
    """Every count by one comparison a pair, the highest scores first."""

    def average_precision(found, others, at_least):
        groups = [at_least(found, v) for v in np.unique(found)]
        kept, order = np.array(groups), np.argsort(-np.unique(found))
        wrong = np.array([at_least(others, v) for v in np.unique(found)])
        mass = np.array([(found == v).sum() for v in np.unique(found)])
        precision = kept / (kept + wrong)
        return np.einsum("rk,rk->r", mass[order][None], precision[order][None])[0] / len(found)

    wins = (ids[:, None] > oods).sum() + (ids[:, None] == oods).sum() / 2
    return [
        wins / (len(ids) * len(oods)),
        brute_force_fpr95(ids, oods),
        average_precision(ids, oods, lambda x, v: (x >= v).sum()),
        average_precision(oods, ids, lambda x, v: (x <= v).sum()),
    ]


@case
@pytest.mark.parametrize("part", [1, 7, 1 << 16])
def test_parts_count_to_the_last_bit_what_all_pairs_do(ids, oods, part, monkeypatch):
    monkeypatch.setattr(metrics, "PART", part)
    assert point_metrics(ids, oods).tolist() == counted_plainly(ids, oods)


@pytest.mark.parametrize("digits", [None, 3], ids=["no ties", "ties"])
def test_parts_are_to_the_last_bit_the_replicate_that_draws_each_input_once(digits):
    sides = [RNG.normal(place, 1, size) for place, size in ((1, 90_000), (0, 70_000))]
    ids, oods = sides if digits is None else [np.round(one, digits) for one in sides]
    every = (np.arange(len(one) + 1)[None] for one in (ids, oods))
    whole = resampling._Ranking(ids, oods).metrics(*every)[0]
    assert point_metrics(ids, oods).tobytes() == whole.tobytes()


def test_metrics_hold_a_few_numbers_a_score():
    ids, oods = np.sort(RNG.normal(1, 1, 300_000)), np.sort(RNG.normal(0, 1, 300_000))
    assert peak_bytes(lambda: metrics.sorted_metrics(ids, oods)) < 23 * len(ids)


@pytest.mark.parametrize("n", [1, 19, 20, 21, 40, 100, 2000])
def test_ninety_five_percent_is_counted_in_whole_numbers(n):
    ids = np.arange(n, dtype=float)
    rejected = n - math.ceil(n * 95 / 100 - 1e-9)
    oods = np.arange(n) - 0.5
    assert fpr95(ids, oods) == (oods >= rejected).mean()


def test_a_perfect_score_and_its_reverse():
    ids, oods = np.array([3.0, 4.0]), np.array([1.0, 2.0])
    assert point_metrics(ids, oods).tolist() == [1, 0, 1, 1]
    assert point_metrics(oods, ids)[:2].tolist() == [0, 1]


def test_torch_tensors_of_any_type_are_taken():
    torch = pytest.importorskip("torch")
    ids = torch.tensor([3.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    assert auroc(ids, torch.tensor([1, 2])) == 0.875


@pytest.mark.parametrize(
    ("ids", "oods", "message"),
    [
        ([], [1.0], r"ID scores as a non-empty vector, got shape \[0\]"),
        ([1.0], [], r"OOD scores as a non-empty vector, got shape \[0\]"),
        ([[1.0]], [1.0], r"got shape \[1, 1\]"),
        ([1.0, 2.0, math.nan], [1.0], "finite ID scores, got nan in row 2"),
        ([1.0], [0.0, math.inf], "finite OOD scores, got inf in row 1"),
    ],
)
def test_what_is_no_score_is_refused(ids, oods, message):
    for metric in (auroc, fpr95, aupr_in, aupr_out):
        with pytest.raises(InvalidArgument, match=message):
            metric(ids, oods)


@case
def test_a_replicate_is_the_metric_of_the_drawn_inputs(ids, oods):
    got = bootstrap(ids, [oods, oods], replicates=7, seed=3)
    assert got.shape == (7, 1, 2, 4)
    order = np.sort(ids)[::-1]
    draws = [np.random.default_rng([3, place]) for place in range(3)]
    for replicate in got[:, 0]:
        picked = order[draws[0].integers(len(ids), size=len(ids))]
        for rng, row in zip(draws[1:], replicate, strict=True):
            other = np.sort(oods)[::-1][rng.integers(len(oods), size=len(oods))]
            np.testing.assert_allclose(row, point_metrics(picked, other), rtol=1e-12, atol=1e-15)


@case
def test_aurocs_alone_are_those_among_all_metrics(ids, oods):
    every, alone = (
        draw(ids, [oods, oods[:5]], replicates=9) for draw in (bootstrap, bootstrap_aurocs)
    )
    assert np.array_equal(alone, every[..., 0])


def test_draws_do_not_depend_on_the_block_or_on_the_other_scores(monkeypatch):
    ids, oods = RNG.normal(size=(3, 90)), RNG.normal(size=(3, 50))
    together = bootstrap(ids, [oods, oods[:, :20]], replicates=50)
    monkeypatch.setattr(resampling, "BLOCK_ENTRIES", 300)
    apart = bootstrap(ids[1], [oods[1], oods[1, :20]], replicates=50)
    assert np.array_equal(together[:, 1:2], apart)


def test_intervals_cover_as_often_as_they_say():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ids, oods = rng.normal(1, 1, 150), rng.normal(0, 1, 150)
        samples = bootstrap(ids, [oods], replicates=200)[:, 0, 0, 0]
        low, high = interval(auroc(ids, oods), samples)
        covered += low <= 0.5 * math.erfc(-1 / 2) <= high  # Phi(1 / sqrt 2)
    assert 180 <= covered <= 199


SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0]), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(ids=SCORES, oods=SCORES, seed=st.integers(0, 3))
@example(ids=[1.0, 2.0], oods=[0.0, 0.5], seed=0)
@example(ids=[1.0, 1.0, 1.0], oods=[1.0, 1.0], seed=0)
@example(ids=[0.0], oods=[1.0], seed=0)
@example(ids=[0.0], oods=[3.0, 1.0, 0.0, 2.0, 3.0], seed=0)
@example(ids=[1.0, 0.0, 4.0, 0.0, 0.0, 2.0], oods=[4.0], seed=0)
def test_an_interval_holds_its_own_figure(ids, oods, seed):
    found = evaluate(ids, oods, replicates=20, seed=seed)
    for metric in METRICS:
        value, low, high = getattr(found, metric)
        assert 0 <= low <= value <= high <= 1


def test_one_replicate_spans_its_figure_and_the_point():
    found = evaluate([1.0, 2.0, 3.0], [0.0, 2.5], replicates=1, seed=1)
    drawn = bootstrap(np.array([[1.0, 2.0, 3.0]]), [np.array([[0.0, 2.5]])], replicates=1, seed=1)
    for metric, other in zip(METRICS, drawn.ravel(), strict=True):
        value, low, high = getattr(found, metric)
        assert (low, high) == (min(value, other), max(value, other))


@pytest.mark.parametrize("replicates", [0, -1])
def test_no_replicates_are_no_interval(replicates):
    with pytest.raises(InvalidArgument, match=f"at least one replicate, got {replicates}"):
        evaluate([1.0, 2.0], [0.0], replicates=replicates)


def test_the_threshold_of_a_share_accepts_no_image_more_or_less():
    scores = np.random.default_rng(0).permutation(1000) / 8
    for share, below in {95: 50, 99: 10, 100: 0, 1: 990}.items():
        assert np.sum(scores < keeping_threshold(scores, share)) == below
