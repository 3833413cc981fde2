"""Folds of classes that the head is robbed of, and the run as that head would have made it."""

import numpy as np
import pytest
from helpers.recorded_run import drawn_set, make_run

from gradscore.choosing.holdout import HeldOutRun, holdouts
from gradscore.errors import NotRecorded
from gradscore.methods import ScoreSpec
from gradscore.run import RunStore
from gradscore.scoring import score_sets


@pytest.mark.parametrize(("classes", "folds"), [(4, 2), (6, 3), (10, 5), (11, 5), (1000, 5)])
def test_each_class_is_dropped_once(classes, folds):
    found = holdouts(classes)
    assert len(found) == folds
    dropped = np.concatenate([fold.dropped for fold in found])
    assert sorted(dropped.tolist()) == list(range(classes))
    for fold in found:
        assert sorted([*fold.dropped, *fold.kept]) == list(range(classes))
        assert len(fold.kept) >= 2


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_few_classes_have_no_fold(classes):
    assert holdouts(classes) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunStore(make_run(tmp_path_factory.mktemp("runs") / "run"))


def test_logits_head_and_labels_are_those_of_the_kept_classes(run):
    drawn = drawn_set("digits")
    for fold in holdouts(5):
        held = HeldOutRun(run, fold)
        assert held.info.classes == len(held.head()["weight"]) == len(fold.kept)
        blocks = list(held.blocks("digits", ("logits", "label")))
        block = {name: np.concatenate([b[name] for b in blocks]) for name in ("logits", "label")}
        np.testing.assert_array_equal(block["logits"], drawn["logits"][:, fold.kept])
        number = {int(c): k for k, c in enumerate(fold.kept)}
        assert block["label"].tolist() == [number.get(int(c), -1) for c in drawn["label"]]


def test_methods_learn_without_the_inputs_of_the_dropped_classes(run):
    drawn = drawn_set("digits")
    predicted = drawn["logits"].argmax(1)
    for fold in holdouts(5):
        blocks = HeldOutRun(run, fold).fit_blocks("digits", ("index",))
        index = np.concatenate([block["index"] for block in blocks])
        assert index.tolist() == np.flatnonzero(np.isin(predicted, fold.kept)).tolist()


def test_scores_are_those_of_the_smaller_head(run):
    fold = holdouts(5)[0]
    (scores,) = score_sets(HeldOutRun(run, fold), ["digits"], [ScoreSpec("max_logit")]).values()
    expected = drawn_set("digits")["logits"][:, fold.kept].max(1)
    np.testing.assert_allclose(scores.columns["max_logit"], expected)


def test_recorded_gradients_are_those_of_the_whole_head_and_not_offered(run):
    held = HeldOutRun(run, holdouts(5)[0])
    with pytest.raises(NotRecorded, match="no gradient norms of a head that lacks classes"):
        score_sets(held, ["digits"], [ScoreSpec("gradnorm", layers="all")])


def test_what_is_learned_is_learned_once_and_not_written(run, monkeypatch):
    held = HeldOutRun(run, holdouts(5)[0])
    monkeypatch.setattr("gradscore.methods.fit_sets.FEWEST", 10)
    monkeypatch.setattr("gradscore.methods.rows.FEWEST", 5)
    spec, before = ScoreSpec("react", fit="train"), dict(run.info.fits)
    first = score_sets(held, ["digits"], [spec])["digits"].columns
    monkeypatch.setattr(held, "fit_blocks", None)
    again = score_sets(held, ["digits"], [spec])["digits"].columns
    np.testing.assert_array_equal(first["react"], again["react"])
    assert run.info.fits == before
