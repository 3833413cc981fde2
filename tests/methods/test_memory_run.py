"""A run in memory of features alone: what it holds, and what it forgets."""

import numpy as np
import pytest

from gradscore.errors import InvalidArgument, NotRecorded
from gradscore.methods import ScoreSpec
from gradscore.methods.memory_run import FeatureRun
from gradscore.objective import Objective
from gradscore.scoring import score_sets


def drawn(seed, rows=60):
    return np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32) + seed


@pytest.fixture
def run():
    made = FeatureRun(np.eye(2, 3, dtype=np.float32), np.zeros(2, np.float32))
    made.add_set("known", "fit", drawn(0))
    made.add_set("new", None, drawn(1))
    return made


def knn(run):
    (column,) = score_sets(run, ["new"], [ScoreSpec("knn")])["new"].columns.values()
    return column


def test_a_set_that_takes_the_place_of_another_teaches_anew(run):
    before = knn(run)
    run.add_set("known", "fit", drawn(2))
    again = FeatureRun(np.eye(2, 3, dtype=np.float32), np.zeros(2, np.float32))
    again.add_set("known", "fit", drawn(2))
    again.add_set("new", None, drawn(1))
    assert knn(run).tolist() == knn(again).tolist() != before.tolist()


def test_what_was_learned_stays_where_another_set_is_replaced_or_its_rows_are_dropped(run):
    before = knn(run)
    run.drop_rows("known")
    run.add_set("new", None, drawn(1))
    assert knn(run).tolist() == before.tolist()


def test_it_holds_what_the_last_layer_makes_of_features_and_nothing_else(run):
    (rows,) = run.blocks("new")
    np.testing.assert_array_equal(rows["logits"], drawn(1)[:, :2])
    with pytest.raises(InvalidArgument, match=r"Expected features \[rows, 3\], .* got \[4, 2\]"):
        run.add_set("wide", None, np.zeros((4, 2), np.float32))
    with pytest.raises(NotRecorded, match="holds features and logits, and no blocks"):
        run.require_complete("new", ("blocks",))
    with pytest.raises(NotRecorded, match="need the model, not its features"):
        run.find_norms(Objective(), ["w"])
