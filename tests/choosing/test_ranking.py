"""Scores ranked by logit AUROCs, ties by the bootstrap, the cheapest of those that tie."""

import numpy as np
import pytest

from gradscore.choosing.ranking import Ranked, Shift, rank, recommended
from gradscore.errors import InvalidArgument
from gradscore.metrics import auroc


def drawn(strengths, n=200, m=150, seed=0):
    """Return a shift on which each score separates by its strength; noise is shared."""
    rng = np.random.default_rng(seed)
    ids, shifted = rng.normal(size=n), rng.normal(size=m)
    own = 0.05 * rng.normal(size=(len(strengths), n))
    return np.stack([ids + s for s in strengths]) + own, np.tile(shifted, (len(strengths), 1))


def test_value_is_the_mean_of_logit_aurocs():
    ids, shifted = drawn([0.5, 2.0, 1.0])
    _, other = drawn([0, 0, 0], seed=1)
    ranking = rank([Shift("a", ids, shifted), Shift("b", ids, other)], replicates=50)
    assert [row.place for row in ranking] == [1, 2, 0]
    for row in ranking:
        areas = [auroc(ids[row.place], ood[row.place]) for ood in (shifted, other)]
        assert row.aurocs == pytest.approx(dict(zip("ab", areas, strict=True)))
        assert row.value == pytest.approx(np.mean([np.log(a / (1 - a)) for a in areas]))
        assert row.auroc == pytest.approx(np.mean(areas))
        assert row.low <= row.value <= row.high


def test_a_perfect_score_counts_half_a_step_short_of_it():
    shift = Shift("a", np.arange(10.0)[None], -1.0 - np.arange(5.0)[None])
    (row,) = rank([shift], replicates=20)
    assert row.aurocs == {"a": 1.0}
    assert row.value == pytest.approx(np.log((1 - 1 / 100) / (1 / 100)))


def test_scores_that_the_bootstrap_cannot_tell_apart_tie_and_the_cheapest_is_taken():
    ids, shifted = drawn([1.0, 2.0, 2.001, 2.0])
    ranking = rank([Shift("a", ids, shifted)])
    tied = {row.place for row in ranking if row.tied}
    assert tied == {1, 2, 3}
    assert recommended(ranking, [0, 3, 2, 1]).place == 3
    assert recommended(ranking, [0, 1, 1, 1]) is ranking[0]


def test_what_is_recommended_has_the_value_that_it_must_have():
    best, middle, noisy = (
        Ranked(place, value, value, value, {"a": 0.5}, tied)
        for place, (value, tied) in enumerate([(3.0, True), (2.0, False), (1.0, True)])
    )
    costs = {0: 2, 1: 0, 2: 1}
    assert recommended([best, middle, noisy], costs) is noisy
    assert recommended([best, middle, noisy], costs, least=2.0) is best


def test_the_ranking_is_the_same_every_time():
    ids, shifted = drawn([1.0, 1.1, 0.9])
    first, second = (rank([Shift("a", ids, shifted)]) for _ in range(2))
    assert first == second


def test_each_shift_may_have_id_inputs_of_its_own():
    a, b = (drawn([0.5, 1.5], n=n, seed=n) for n in (40, 90))
    ranking = rank([Shift("a", *a), Shift("b", *b)])
    assert [row.place for row in ranking] == [1, 0]


def test_no_shift_is_refused():
    with pytest.raises(InvalidArgument, match="at least one shift to rank scores by"):
        rank([])
