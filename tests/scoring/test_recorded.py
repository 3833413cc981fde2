"""A run as Python users read it."""

import numpy as np
import pytest
import torch
from helpers.recorded_run import SIZES, drawn_norms, drawn_set, make_run, tensors

import gradscore as gs
from gradscore.errors import InvalidArgument, RunError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return gs.Run(make_run(tmp_path_factory.mktemp("runs") / "run"))


def test_sets_are_named_with_role_and_rows(run):
    assert {name: entry.rows for name, entry in run.sets.items()} == SIZES
    assert run.sets["digits"].role == "id"


@pytest.mark.parametrize("field", ["features", "logits"])
def test_recorded_arrays_come_back_whole(run, field):
    got = getattr(run, field)("photos")
    assert got.dtype == torch.float32
    assert np.array_equal(got.numpy(), drawn_set("photos")[field])


def test_labels_predictions_and_paths_come_back(run):
    drawn = drawn_set("digits")
    assert run.labels("digits").tolist() == drawn["label"].tolist()
    assert run.predicted("digits").tolist() == drawn["logits"].argmax(1).tolist()
    assert run.paths("digits") == drawn["path"].tolist()


def test_a_table_has_a_row_an_image_and_a_column_a_score(run):
    table = run.table("digits", ["gradnorm", "msp"], p=[1, 2])
    assert table.column_names == [
        *("set", "index", "path", "label", "predicted"),
        *("gradnorm[p=1]", "gradnorm[p=2]", "msp"),
    ]
    assert table["msp"].to_pylist() == run.score("digits", "msp").tolist()
    assert table["gradnorm[p=2]"].to_pylist() == run.score("digits", p=2).tolist()
    assert table["label"].to_pylist() == run.labels("digits").tolist()
    plain = run.table("digits")
    assert plain.column_names == ["set", "index", "path", "label", "predicted"]
    assert plain["index"].to_pylist() == list(range(40))


def test_a_table_names_classes_where_the_run_knows_them(tmp_path):
    path = make_run(tmp_path / "run")
    run = gs.Run(path)
    run.store.info.class_names = tuple("abcde")
    for name in ("digits", "noise"):
        table = run.table(name)
        labels = [None if k < 0 else "abcde"[k] for k in run.labels(name).tolist()]
        assert table["label_name"].to_pylist() == labels
        assert table.schema.field("label_name").type == "string"  # also where no row has a label
        assert table["predicted_name"][7].as_py() == "abcde"[run.predicted(name)[7]]


def test_a_label_beyond_the_classes_has_no_name(tmp_path):
    def change(name, arrays):
        if name == "noise":
            arrays["label"][:3] = 7

    run = gs.Run(make_run(tmp_path / "run", change=change))
    run.store.info.class_names = tuple("abcde")
    assert run.table("noise")["label_name"].to_pylist()[:3] == [None] * 3


def test_a_run_says_what_it_holds(run, tmp_path):
    lines = repr(run).splitlines()
    assert lines[0] == f"Run('{run.path}'): model python:tests:drawn, 5 classes"
    assert lines[1] == "  digits: id, 40 images, features and logits, norms-uniform-T1-p1"
    assert lines[3].startswith("  train: no role, 60 images")
    html = run._repr_html_()
    assert "<tr><td>digits</td><td>id</td><td>40 images</td>" in html
    hostile = gs.Run(run.path)
    hostile.store.info.model = "<script>\x1b"
    assert "<script>" not in hostile._repr_html_()
    assert r"&lt;script&gt;\x1b" in hostile._repr_html_()
    assert r"<script>\x1b" in repr(hostile)


def test_scores_are_the_closed_form_and_the_recorded_norms(run):
    x, f = tensors("noise")
    expected = gs.last_layer_score(x, f, p=2, temperature=4)
    got = run.score("noise", p=2, temperature=4)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=0)
    got = run.score("noise", "gradnorm", layers="all")
    torch.testing.assert_close(got, torch.from_numpy(drawn_norms("noise")).double().sum(1))


def test_unknown_names_are_refused(run, tmp_path):
    asked = (run.features, run.logits, run.labels, run.predicted, run.paths, run.table, run.score)
    for ask in asked:
        with pytest.raises(InvalidArgument, match="Unknown set 'absent'; the run holds: digits"):
            ask("absent")
    with pytest.raises(InvalidArgument, match="msp does not honour p"):
        run.score("noise", "msp", p=2)
    with pytest.raises(RunError, match="No run in"):
        gs.Run(tmp_path / "absent")
