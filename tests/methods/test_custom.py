"""Scores of a user's own, by name."""

import sys

import numpy as np
import pytest
import torch
from helpers.recorded_run import drawn_set, make_run

import gradscore as gs
from gradscore.errors import InvalidArgument, RunError
from gradscore.evaluation import evaluate_run
from gradscore.methods import METHODS, make_spec
from gradscore.methods.custom import import_method
from gradscore.run import RunStore, check
from gradscore.scoring import score_sets


@pytest.fixture(autouse=True)
def registered():
    before = dict(METHODS)
    yield
    for name in METHODS.keys() - before.keys():
        del METHODS[name]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunStore(make_run(tmp_path_factory.mktemp("runs") / "run"))


def column(run, name, method, **how):
    (scores,) = score_sets(run, [name], [make_spec(method, **how)]).values()
    return scores.columns[method]


def test_a_registered_score_stands_in_every_table(run):
    gs.register_method("margin", lambda features, logits, head: logits.topk(2).values @ PLUS_MINUS)
    drawn = np.sort(drawn_set("noise")["logits"])
    np.testing.assert_allclose(column(run, "noise", "margin"), drawn[:, -1] - drawn[:, -2], 1e-5)
    assert evaluate_run(run, [make_spec("margin")], replicates=0).rows[0]["method"] == "margin"


PLUS_MINUS = torch.tensor([1.0, -1.0])


def test_what_it_learns_comes_from_the_set_to_fit_to(run):
    gs.register_method(
        "near_mean",
        lambda features, logits, head, mean: -(features - mean).norm(dim=1),
        lambda features, logits, head: features.mean(dim=0),
    )
    mean = drawn_set("train")["features"].mean(0)
    expected = -np.linalg.norm(drawn_set("digits")["features"] - mean, axis=1)
    found = column(run, "digits", "near_mean", fit="train")
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_it_never_sees_the_rows_that_it_is_tested_on(run, monkeypatch):
    monkeypatch.setattr("gradscore.methods.fit_sets.FEWEST", 10)
    monkeypatch.setattr("gradscore.methods.rows.FEWEST", 10)
    gs.register_method(
        "seen",
        lambda features, logits, head, known: -torch.cdist(features, known).amin(dim=1),
        lambda features, logits, head: features,
    )
    assert (column(run, "digits", "seen") < -1e-3).all()


def learn_mean(features, logits, head):
    """Return the mean feature; a module's function, as users have it."""
    return {"mean": features.mean(dim=0), "scale": SCALE}


def learn_object(features, logits, head):
    return slice(0, len(features))


def distance(features, logits, head, learned):
    return -learned["scale"] * (features - learned["mean"]).norm(dim=1)


SCALE = 2.0


@pytest.fixture
def own_run(tmp_path):
    return RunStore(make_run(tmp_path / "run"))


def test_what_it_learned_is_kept_in_the_run_and_read_by_the_next_process(own_run, monkeypatch):
    gs.register_method("mean_distance", distance, learn_mean)
    first = column(own_run, "noise", "mean_distance", fit="train")
    (fit,) = own_run.info.fits.values()
    assert (fit.method, list(fit.sets)) == ("mean_distance", ["train"])
    assert check(own_run.path) == []
    monkeypatch.setattr("gradscore.methods.custom._learned", None)
    again = column(RunStore(own_run.path), "noise", "mean_distance", fit="train")
    assert again.tobytes() == first.tobytes()


def test_another_function_or_what_it_refers_to_is_learned_anew(own_run, monkeypatch):
    gs.register_method("mean_distance", distance, learn_mean)
    first = column(own_run, "noise", "mean_distance", fit="train")
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 3.0)
    again = column(own_run, "noise", "mean_distance", fit="train")
    np.testing.assert_allclose(again, first * 1.5)
    assert len(own_run.info.fits) == 2


def test_what_is_no_array_is_learned_again_and_not_kept(own_run):
    gs.register_method(
        "rows", lambda features, logits, head, part: features[:, 0] * part.stop, learn_object
    )
    found = column(own_run, "noise", "rows", fit="train")
    np.testing.assert_allclose(found, drawn_set("noise")["features"][:, 0] * 60.0)
    assert own_run.info.fits == {}


def test_a_kept_fit_that_nothing_of_ones_own_could_be_is_one_line(own_run):
    gs.register_method("mean_distance", distance, learn_mean)
    column(own_run, "noise", "mean_distance", fit="train")
    (fit,) = own_run.info.fits.values()
    with RunStore.open_for_writing(own_run.path) as store:
        store.write_fit(fit, {"fold0.dict.code.float64.1.0.mean": np.ones(1)})
    with pytest.raises(RunError, match="is damaged: no method of one's own keeps"):
        column(RunStore(own_run.path), "noise", "mean_distance", fit="train")


def test_a_value_that_is_not_finite_is_not_learned_from(tmp_path):
    def change(name, arrays):
        if name == "train":
            arrays["features"][3, :2] = np.inf, -np.inf

    run = RunStore(make_run(tmp_path / "run", change=change))
    gs.register_method("mean_distance", distance, learn_mean)
    with pytest.raises(RunError, match="finite features to learn from, got inf in row 3 of"):
        column(run, "noise", "mean_distance", fit="train")


def test_the_head_is_given(run):
    gs.register_method("own_head", lambda features, logits, head: head(features).amax(dim=1))
    assert column(run, "digits", "own_head").tolist() == [0.0] * 40


@pytest.mark.parametrize("name", ["msp", "Mine", "a b", "python:os:system", "", "label"])
def test_a_name_that_is_taken_or_none_is_refused(name):
    with pytest.raises(InvalidArgument, match="Expected a "):
        gs.register_method(name, lambda *a: None)


def test_an_error_within_a_function_names_the_method(own_run):
    def broken(features, logits, head, *learned):
        raise KeyError("mine")

    gs.register_method("broken", broken)
    gs.register_method("broken_fit", lambda f, z, head, learned: z[:, 0], broken)
    gs.register_method("no_scores", lambda features, logits, head: None)
    with pytest.raises(InvalidArgument, match="The score of method broken failed: KeyError: 'm"):
        column(own_run, "noise", "broken")
    with pytest.raises(InvalidArgument, match="The fit of method broken_fit failed: KeyError"):
        column(own_run, "noise", "broken_fit", fit="train")
    with pytest.raises(InvalidArgument, match="The score of method no_scores failed: "):
        column(own_run, "noise", "no_scores")


def test_another_number_of_scores_is_refused(run):
    gs.register_method("short", lambda features, logits, head: logits[:1, 0])
    with pytest.raises(InvalidArgument, match=r"short to return scores \[16\], got \[1\]"):
        column(run, "digits", "short")


def test_a_function_is_imported_only_where_its_user_gives_it(tmp_path, monkeypatch, run):
    (tmp_path / "own_scores.py").write_text(
        "def largest(features, logits, head):\n    return logits.amax(dim=1)\n"
        "def shifted(features, logits, head, mean):\n    return logits[:, 0] - mean\n"
        "shifted.fit = lambda features, logits, head: float(logits[:, 0].mean())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name = "python:own_scores:largest"
    with pytest.raises(InvalidArgument, match="imported only where you give it"):
        make_spec(name)
    assert "own_scores" not in sys.modules
    import_method(name)
    np.testing.assert_allclose(column(run, "noise", name), drawn_set("noise")["logits"].max(1))
    import_method(name)
    import_method("python:own_scores:shifted")
    column(run, "noise", "python:own_scores:shifted", fit="train")
    assert any(fit.startswith("python.own_scores.shifted-train-") for fit in run.info.fits)
    assert check(run.path) == []


@pytest.mark.parametrize(
    "name", ["python:", "python:os", "python:no_such_module:f", "python:os:f"]
)
def test_a_function_that_is_not_there_is_one_line(name):
    with pytest.raises(InvalidArgument, match=f"Expected python:|Cannot import {name}"):
        import_method(name)
