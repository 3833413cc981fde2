"""The choice that a run keeps: read strictly, checked by ``run check``, gone with its set."""

import json

import numpy as np
import pytest
from helpers.recorded_run import make_run

from gradscore.choosing import Choice, choose, read_choice
from gradscore.choosing.choice import Row
from gradscore.choosing.ranking import Ranked
from gradscore.errors import NotRecorded, RunError
from gradscore.methods import METHODS, ScoreSpec
from gradscore.methods.custom import own_digest, register_method
from gradscore.run import RunStore, check, remove_set


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr("gradscore.choosing.tables.FEWEST_IMAGES", 3)


@pytest.fixture
def run(tmp_path):
    path = make_run(tmp_path / "run")
    choose(path)
    return path


def alter(run, change):
    """Change what the file says; return what it said."""
    file = run / "fits" / "choice.json"
    held = json.loads(file.read_text())
    change(held)
    file.write_text(json.dumps(held))
    return held


def test_what_choose_stored_is_read_again(run):
    choice = choose(run)
    spec, record = read_choice(run)
    assert spec == choice.spec
    assert record == choice.to_record()
    assert record.to_json() == (run / "fits" / "choice.json").read_text() == choice.to_json()
    assert read_choice(RunStore(run)) == (spec, record)


def test_where_nothing_was_chosen_there_is_none(tmp_path):
    assert read_choice(make_run(tmp_path / "run")) is None


def test_an_infinite_order_is_read_again(run):
    def change(held):
        row = {**held["near"][0], "method": "gradnorm"}
        row["options"] = {"layers": "last", "p": "inf", "temperature": 1.0, "target": "uniform"}
        held["near"].append(row)
        held["recommended"] = {"method": "gradnorm", **row["options"]}

    alter(run, change)
    assert read_choice(run)[0].p == float("inf")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda held: held.pop("notes"), "expected 'notes' in it"),
        (lambda held: held.update(more=1), "expected no 'more' in it"),
        (lambda held: held.update(by="best"), "expected far or near as by, got 'best'"),
        (lambda held: held.update(by="far"), "expected the recommended score in the far table"),
        (lambda held: held.update(far=held["near"]), "expected by far where there is a far table"),
        (lambda held: held.update(near=[]), "expected the recommended score in the near table"),
        (lambda held: held.update(id=[]), "expected an ID set in id"),
        (lambda held: held.update(warning=3), "expected a text as warning, got int"),
        (lambda held: held["recommended"].pop("method"), "expected a method in recommended"),
        (lambda held: held["near"][1].update(value=9e9), r"value_high in near\[1\]"),
        (lambda held: held["near"][1].update(aurocs={}), r"AUROCs of 0 to 1 in near\[1\]"),
        (lambda held: held["near"][1]["aurocs"].update(a=1.5), r"AUROCs of 0 to 1 in near\[1\]"),
        (lambda held: held["near"][1]["options"].update(k=[]), r"near\[1\]\.options\.k"),
        (lambda held: held["near"][1].update(tied="no"), "expected true or false"),
    ],
)
def test_what_no_choice_can_say_is_refused_and_reported(run, change, fault):
    alter(run, change)
    with pytest.raises(RunError, match=f"choice.json is damaged: .*{fault}.*; delete it, then"):
        read_choice(run)
    (problem,) = check(run)
    assert problem.file == "fits/choice.json"
    assert problem.repair == f"`gradscore choose --run {run}`"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "no JSON"),
        (b"\xff", "not UTF-8"),
        (b'{"by": "far", "by": "far"}', "says 'by' twice"),
        (b"[]", "expected an object"),
        (b'{"by": NaN}', "finite numbers"),
    ],
)
def test_what_is_no_json_object_is_refused(run, content, fault):
    (run / "fits" / "choice.json").write_bytes(content)
    with pytest.raises(RunError, match=fault):
        read_choice(run)


def test_a_link_is_not_followed(run, tmp_path):
    file = run / "fits" / "choice.json"
    file.rename(tmp_path / "elsewhere.json")
    file.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(RunError, match="is a link"):
        read_choice(run)


def test_a_removed_set_takes_the_choice_along_unless_it_is_ood(run):
    with RunStore.open_for_writing(run) as store:
        remove_set(store, "noise")
    assert read_choice(run) is not None
    with RunStore.open_for_writing(run) as store:
        remove_set(store, "digits")
    assert read_choice(run) is None


def test_a_choice_by_a_set_that_is_not_there_is_one_line(run):
    alter(run, lambda held: held.update(id=["elsewhere"]))
    with pytest.raises(NotRecorded, match=r"no longer holds the set 'elsewhere'.*choose --run"):
        read_choice(run)


def test_a_choice_that_learned_from_a_set_that_is_not_there_is_one_line(run):
    def change(held):
        row = {**held["near"][0], "method": "knn", "options": {"fit": "gone"}}
        held["near"].append(row)
        held["recommended"] = {"method": "knn", "fit": "gone"}

    alter(run, change)
    with pytest.raises(NotRecorded, match="no longer holds the set 'gone', by which"):
        read_choice(run)


def test_another_function_of_the_chosen_name_is_one_line(run):
    def recommend_own(scale):
        METHODS.pop("own", None)
        register_method("own", lambda features, logits, head: scale * logits.amax(dim=1))
        choose(run)
        alter(run, lambda held: held.update(recommended={"method": "own"}))

    try:
        recommend_own(1.0)
        alter(run, lambda held: held.update(own=own_digest(METHODS["own"])))
        assert read_choice(run)[0].method == "own"
        digest = read_choice(run)[1].own
        recommend_own(2.0)
        alter(run, lambda held: held.update(own=digest))
        with pytest.raises(
            NotRecorded, match=r"'own' is not the function that was chosen .* agai"
        ):
            read_choice(run)
    finally:
        del METHODS["own"]


def test_a_choice_says_which_function_it_recommends():
    ranked = Ranked(0, 1.0, 1.0, 1.0, {"phase": 0.9}, tied=True)

    def recommended(score):
        METHODS.pop("own", None)
        register_method("own", score)
        row = Row(ScoreSpec("own"), ranked)
        return Choice(row.spec, "far", None, [row], []).to_record().own

    try:
        first = recommended(lambda features, logits, head: logits.amax(dim=1))
        again = recommended(lambda features, logits, head: logits.amax(dim=1))
        other = recommended(lambda features, logits, head: logits.amin(dim=1))
        assert first == again != other
        assert recommended(lambda *given: np.load("x")) == ""
    finally:
        del METHODS["own"]
    row = Row(ScoreSpec("msp"), ranked)
    assert Choice(row.spec, "far", None, [row], []).to_record().own is None


def test_a_score_that_is_not_registered_here_is_one_line(run):
    register_method("own", lambda features, logits, head: logits.amax(dim=1))
    try:
        choose(run)
        own = {"recommended": {"method": "own"}, "own": own_digest(METHODS["own"])}
        alter(run, lambda held: held.update(own))
        assert read_choice(run)[0].method == "own"
    finally:
        del METHODS["own"]
    with pytest.raises(NotRecorded, match=r"not known here: Unknown method 'own'.*choose again"):
        read_choice(run)
