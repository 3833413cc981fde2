"""Tables for readers: methods x sets, percent with one decimal, the best in bold."""

import pytest
from helpers.recorded_run import make_run

from gradscore.ablation import compare
from gradscore.evaluation import evaluate_run
from gradscore.methods import make_specs
from gradscore.pivot import pivot
from gradscore.tables import write_evaluation, write_rows

NAMES = ("gradnorm, p = 1", "gradnorm, p = 2", "msp")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def evaluation(run):
    return evaluate_run(run, make_specs(["gradnorm", "msp"], p=(1.0, 2.0)), replicates=20)


def row_of(rows, method, ood, p=None):
    (row,) = [r for r in rows if (r["method"], r["ood"]) == (method, ood) and p in (None, r["p"])]
    return row


def test_a_line_a_score_and_a_column_a_set_and_figure(evaluation):
    table = pivot(evaluation.rows)
    assert table.lead == ("method",)
    assert [line.lead for line in table.lines] == [(name,) for name in NAMES]
    assert table.columns == [
        *(("noise", "auroc"), ("noise", "fpr95"), ("photos", "auroc"), ("photos", "fpr95")),
        *(("mean", "auroc"), ("mean", "fpr95")),
    ]
    assert table.lines[1].rows["photos"] is row_of(evaluation.rows, "gradnorm", "photos", 2)


def test_the_mean_of_a_single_set_is_left_out(evaluation):
    rows = [row for row in evaluation.rows if row["ood"] != "photos"]
    assert pivot(rows, ["auroc"]).columns == [("noise", "auroc")]


def test_the_best_is_the_highest_auroc_and_the_lowest_fpr95(evaluation):
    table = pivot(evaluation.rows)
    for metric, extreme in (("auroc", max), ("fpr95", min)):
        printed = [round(100 * line.rows["noise"][metric], 1) for line in table.lines]
        marked = [table.best(line, "noise", metric) for line in table.lines]
        assert marked == [value == extreme(printed) for value in printed]


def test_markdown_holds_percent_with_intervals(evaluation, tmp_path):
    write_evaluation(tmp_path / "t.md", evaluation, ["aupr_in"])
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[0] == "ID accuracy: 97.4% of 38 labelled images (40 in all)."
    assert lines[2] == "95% intervals: bootstrap percentiles."
    assert lines[4] == "Percent [95% interval]; higher AUPR-in is better. Best in bold."
    assert lines[6] == "| method | noise AUPR-in | photos AUPR-in | mean AUPR-in |"
    row = row_of(evaluation.rows, "msp", "noise")
    value, low, high = (100 * row[f"aupr_in{end}"] for end in ("", "_low", "_high"))
    assert f"{value:.1f} [{low:.1f}, {high:.1f}]" in lines[-1].replace("*", "")
    assert lines[-1].startswith("| msp | ")


def test_latex_is_a_booktabs_table_with_the_best_in_bold(evaluation, tmp_path):
    write_evaluation(tmp_path / "t.tex", evaluation)
    lines = (tmp_path / "t.tex").read_text().splitlines()
    assert lines[0] == "% ID accuracy: 97.4% of 38 labelled images (40 in all)."
    body = [line for line in lines if not line.startswith("%")]
    assert body[0] == r"\begin{tabular}{lrrrrrr}"
    assert body[2].count(r"\multicolumn{2}{c}") == 3
    assert body[3] == r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}\cmidrule(lr){6-7}"
    assert body[4].count("&") == 6
    assert body[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert all(line.endswith(r" \\") and line.count("&") == 6 for line in body[6:9])
    table = pivot(evaluation.rows)
    for line, text in zip(table.lines, body[6:9], strict=True):
        cell = text.split(" & ")[1]
        value = f"{100 * line.rows['noise']['auroc']:.1f}"
        assert cell == (rf"\textbf{{{value}}}" if table.best(line, "noise", "auroc") else value)


def test_runs_side_by_side_say_their_id_accuracy_and_keep_their_own_best(run, tmp_path):
    rows = compare([run, run], make_specs(["msp", "energy"]), replicates=0)
    for row in rows[len(rows) // 2 :]:
        row["run"], row["model"], row["id_accuracy"] = "other", "python:a:b", 0.5
        row["auroc"] = row["auroc"] / 2
    table = pivot(rows)
    assert table.lead == ("run", "model", "ID accuracy", "method")
    assert [line.lead[1:] for line in table.lines] == [
        *(("python:tests:drawn", "97.4", "msp"), ("python:tests:drawn", "97.4", "energy")),
        *(("python:a:b", "50.0", "msp"), ("python:a:b", "50.0", "energy")),
    ]
    assert sum(table.best(line, "mean", "auroc") for line in table.lines) >= 2
    write_rows(tmp_path / "t.tex", rows)
    assert (tmp_path / "t.tex").read_text().count(r"\midrule") == 2


def test_other_rows_are_a_plain_table(tmp_path):
    write_rows(tmp_path / "t.tex", [{"rule": "linear_weight", "error": 1e-9}])
    assert (tmp_path / "t.tex").read_text().splitlines()[3:7] == [
        r"rule & error \\",
        r"\midrule",
        r"linear\_weight & 1e-09 \\",
        r"\bottomrule",
    ]
