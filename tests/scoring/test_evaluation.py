"""Rows of an evaluation against their definition, and the files that they are written to."""

import csv
import json
import math

import numpy as np
import pyarrow.parquet
import pytest
from helpers import recorded_run
from helpers.recorded_run import make_run

import gradscore as gs
from gradscore.choices import METRICS
from gradscore.errors import InvalidArgument, RunError
from gradscore.escapes import from_cell
from gradscore.evaluation import COLUMNS, evaluate, evaluate_run
from gradscore.methods import ScoreSpec
from gradscore.metrics import auroc, point_metrics
from gradscore.recorded import Run
from gradscore.resampling import bootstrap, interval
from gradscore.scoring import iterate_scores, score_sets
from gradscore.tables import write_evaluation, write_rows, write_scores

QUESTIONS = [ScoreSpec("gradnorm"), ScoreSpec("gradnorm", p=math.inf), ScoreSpec("max_logit")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(make_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def evaluation(run):
    return evaluate_run(run, QUESTIONS, replicates=100)


def test_two_vectors_give_figures_with_intervals():
    rng = np.random.default_rng(0)
    ids, oods = rng.normal(1, 1, 100), rng.normal(0, 1, 80)
    metrics = gs.evaluate(ids, oods)
    point = point_metrics(ids, oods)
    low, high = interval(point, bootstrap(ids, [oods])[:, 0, 0])
    for k, name in enumerate(METRICS):
        figure = getattr(metrics, name)
        assert float(figure) == point_metrics(ids, oods)[k]
        assert (figure.low, figure.high) == (low[k], high[k])
    assert f"auroc {100 * metrics.auroc.value:.1f} [" in str(metrics)


def test_rows_are_the_figures_of_each_pair_and_their_mean(run, evaluation):
    scored = score_sets(run.store, ["digits", "noise", "photos"], QUESTIONS)
    rows = iter(evaluation.rows)
    for spec, column in zip(QUESTIONS, scored["digits"].columns, strict=True):
        ids = scored["digits"].columns[column]
        oods = [scored[name].columns[column] for name in ("noise", "photos")]
        points = np.array([point_metrics(ids, ood) for ood in oods])
        samples = bootstrap(ids, oods, replicates=100)[:, 0]
        for k, name in enumerate(["noise", "photos", "mean"]):
            row = next(rows)
            assert tuple(row) == COLUMNS
            assert [row[key] for key in COLUMNS[:7]] == [
                *(spec.method, spec.layers, spec.p, spec.temperature),
                *(spec.target, "digits", name),
            ]
            point = points.mean(0) if name == "mean" else points[k]
            drawn = samples.mean(1) if name == "mean" else samples[:, k]
            np.testing.assert_allclose([row[m] for m in METRICS], point, rtol=1e-14)
            low, high = interval(point, drawn)
            np.testing.assert_allclose([row[f"{m}_low"] for m in METRICS], low, rtol=1e-14)
            np.testing.assert_allclose([row[f"{m}_high"] for m in METRICS], high, rtol=1e-14)
    assert next(rows, None) is None


def test_each_row_says_what_its_score_learned_from(tmp_path, monkeypatch):
    monkeypatch.setitem(recorded_run.ROLES, "train", "id")
    several = Run(make_run(tmp_path / "run"))
    specs = [ScoreSpec("mahalanobis", fit=name) for name in ("train", "digits")]
    specs.insert(1, ScoreSpec("msp"))
    rows = evaluate_run(several, specs, replicates=0).rows
    fits = [None if row["method"] == "msp" else row["fit"] for row in rows]
    assert fits == [*["train"] * 3, *[None] * 3, *["digits"] * 3] * 2
    assert [row["fit"] for row in rows] == fits
    assert [row["id"] for row in rows] == ["digits"] * 9 + ["train"] * 9
    assert not any("epsilon" in row for row in rows)
    assert "fit" not in evaluate_run(several, [ScoreSpec("msp")], replicates=0).rows[0]
    for row in rows:
        learned = {} if row["fit"] is None else {"fit": row["fit"]}
        ids, oods = (
            several.score(name, row["method"], **learned)
            for name in (row["id"], "photos" if row["ood"] == "mean" else row["ood"])
        )
        if row["ood"] != "mean":
            assert row["auroc"] == pytest.approx(auroc(ids, oods), abs=1e-12)


def test_accuracy_counts_labelled_id_rows_alone(evaluation):
    # 40 rows: two without a label, one labelled otherwise than predicted.
    assert {name: a.share for name, a in evaluation.accuracies.items()} == {"digits": 37 / 38}


def test_no_replicates_leave_the_intervals_out(run):
    row = evaluate_run(run, QUESTIONS[:1], replicates=0).rows[0]
    assert row["auroc"] is not None
    assert row["auroc_low"] is None


def test_sets_can_be_chosen_and_roles_are_needed(run):
    rows = evaluate_run(run, QUESTIONS[:1], sets=["photos", "digits"], replicates=0).rows
    assert [row["ood"] for row in rows] == ["photos", "mean"]
    with pytest.raises(RunError, match=r"the role ood .* got none among digits"):
        evaluate_run(run, QUESTIONS, sets=["digits"])
    with pytest.raises(RunError, match=r"the role id .* extract --run .* --id NAME=PATH`"):
        evaluate_run(run, QUESTIONS, sets=["noise"])
    with pytest.raises(InvalidArgument, match="Unknown set 'absent'"):
        evaluate_run(run, QUESTIONS, sets=["absent"])


@pytest.mark.parametrize("ending", ["csv", "json", "md", "parquet", "tex"])
def test_two_evaluations_give_identical_files(run, evaluation, tmp_path, ending):
    again = evaluate_run(run.path, QUESTIONS, replicates=100)
    for name, result in (("one", evaluation), ("two", again)):
        write_evaluation(tmp_path / f"{name}.{ending}", result)
    assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_written_can_be_read_back(evaluation, tmp_path):
    for ending in ("csv", "json", "parquet"):
        write_evaluation(tmp_path / f"table.{ending}", evaluation)
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["auroc"]) for row in rows] == [row["auroc"] for row in evaluation.rows]
    assert rows[3]["p"] == "inf"
    assert rows[-1]["p"] == rows[-1]["layers"] == ""
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["id_accuracy"] == {"digits": 37 / 38}
    assert content["rows"][0] == evaluation.rows[0]
    table = pyarrow.parquet.read_table(tmp_path / "table.parquet")
    assert table.to_pylist() == evaluation.rows


def test_scores_are_written_one_row_an_input(run, tmp_path):
    names = ["digits", "noise"]
    scored = score_sets(run.store, names, QUESTIONS)
    for ending in ("csv", "parquet"):
        written = write_scores(
            tmp_path / f"scores.{ending}", iterate_scores(run.store, names, QUESTIONS)
        )
        assert written == 65
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.reader(file))
    columns = ["set", "path", "label", "predicted", "gradnorm[p=1]", "gradnorm[p=inf]"]
    assert rows[0] == [*columns, "max_logit"]
    assert rows[1][:3] == ["digits", "digits/0.png", "-1"]
    expected = [value for s in scored.values() for value in s.columns["max_logit"]]
    assert [float(row[-1]) for row in rows[1:]] == expected
    table = pyarrow.parquet.read_table(tmp_path / "scores.parquet")
    assert table.column("max_logit").to_pylist() == expected
    assert table.column("predicted")[3].as_py() == scored["digits"].predicted[3]


def test_written_scores_name_the_predicted_class_where_names_are_known(run, tmp_path):
    names = ["=a", "b", "c", "d", "e\udcff"]
    (block,) = score_sets(run.store, ["digits"], QUESTIONS[:1]).values()
    for ending in ("csv", "parquet"):
        write_scores(tmp_path / f"s.{ending}", [block], names)
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[2:5] == ["label", "predicted", "predicted_name"]
    assert [int(row["predicted"]) for row in rows] == block.predicted.tolist()
    told = [from_cell(row["predicted_name"]) for row in rows]
    assert told == [names[k] for k in block.predicted]
    table = pyarrow.parquet.read_table(tmp_path / "s.parquet")
    assert table["predicted"].to_pylist() == block.predicted.tolist()
    shown = [*names[:4], "e\\udcff"]
    assert table["predicted_name"].to_pylist() == [shown[k] for k in block.predicted]


def test_files_that_cannot_be_written_are_refused(evaluation, run, tmp_path):
    with pytest.raises(InvalidArgument, match=r"ending in \.csv, \.parquet, .* got 't\.xls'"):
        write_evaluation("t.xls", evaluation)
    with pytest.raises(InvalidArgument, match=r"ending in \.csv, \.parquet"):
        write_scores("t.json", [])
    with pytest.raises(InvalidArgument, match="at least one row"):
        write_rows(tmp_path / "t.csv", [])
    with pytest.raises(InvalidArgument, match="at least one row"):
        write_scores(tmp_path / "t.csv", [])
    with pytest.raises(RunError, match=r"Cannot write .*absent/t\.csv: No such file"):
        write_evaluation(tmp_path / "absent" / "t.csv", evaluation)
    assert list(tmp_path.iterdir()) == []


def test_a_perfect_score_has_no_spread():
    metrics = evaluate([2.0, 3.0], [0.0, 1.0])
    assert metrics.auroc == (1, 1, 1)
    assert metrics.fpr95 == (0, 0, 0)
