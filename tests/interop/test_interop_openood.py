"""An evaluation as lines of OpenOOD's leaderboard."""

import csv

import pytest
from click.testing import CliRunner
from helpers.recorded_run import make_run

from gradscore.cli import cli
from gradscore.errors import InvalidArgument
from gradscore.evaluation import evaluate_run
from gradscore.interop.openood import write_leaderboard
from gradscore.methods import ScoreSpec
from gradscore.run import RunStore

HEAD = (
    "Training,Postprocessor,Near-OOD_AUROC,Far-OOD_AUROC,ID_Accuracy,Outlier_Data,Arch,"
    "Additional_Description"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_line_a_score_in_percent_with_near_and_far_apart(run, tmp_path):
    specs = [ScoreSpec("energy"), ScoreSpec("u", p=2.0)]
    evaluation = evaluate_run(run, specs, replicates=0)
    write_leaderboard(tmp_path / "x.csv", evaluation, near=["noise"], model="=cmd")
    assert (tmp_path / "x.csv").read_text().splitlines()[0] == HEAD
    auroc = {(row["method"], row["ood"]): f"{100 * row['auroc']:.2f}" for row in evaluation.rows}
    energy, u = lines_of(tmp_path / "x.csv")
    assert energy == {
        "Training": "/",
        "Postprocessor": "EBO",
        "Near-OOD_AUROC": auroc["energy", "noise"],
        "Far-OOD_AUROC": auroc["energy", "photos"],
        "ID_Accuracy": "97.37",
        "Outlier_Data": "/",
        "Arch": "'=cmd",
        "Additional_Description": "digits: temperature 1",
    }
    assert (u["Postprocessor"], u["Additional_Description"]) == ("u", "digits: p 2")


def test_without_near_sets_all_are_far_and_their_mean_is_given(run, tmp_path):
    evaluation = evaluate_run(run, [ScoreSpec("msp")], replicates=0)
    write_leaderboard(tmp_path / "x.csv", evaluation)
    (line,) = lines_of(tmp_path / "x.csv")
    assert line["Near-OOD_AUROC"] == "/"
    assert line["Far-OOD_AUROC"] == f"{100 * evaluation.rows[-1]['auroc']:.2f}"
    assert line["Postprocessor"] == "MSP"


def test_each_id_set_has_its_own_line(run, tmp_path):
    store = RunStore(run)
    store.sets["train"].role = "id"
    evaluation = evaluate_run(store, [ScoreSpec("msp")], replicates=0)
    write_leaderboard(tmp_path / "x.csv", evaluation)
    lines = lines_of(tmp_path / "x.csv")
    means = [100 * row["auroc"] for row in evaluation.rows if row["ood"] == "mean"]
    assert [line["Far-OOD_AUROC"] for line in lines] == [f"{mean:.2f}" for mean in means]
    assert [line["ID_Accuracy"] for line in lines] == ["97.37", "100.00"]
    about = [line["Additional_Description"] for line in lines]
    assert about == ["digits: temperature 1", "train: temperature 1"]


def test_a_near_set_that_is_none_is_refused(run, tmp_path):
    evaluation = evaluate_run(run, [ScoreSpec("msp")], replicates=0)
    with pytest.raises(InvalidArgument, match="a near OOD set of noise, photos, got 'digits'"):
        write_leaderboard(tmp_path / "x.csv", evaluation, near=["digits"])
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["-o", "{}/x.csv", "--format", "openood", "--near", "noise"], 0, ""),
        (["-o", "{}/x.json", "--format", "openood"], 2, "Expected -o FILE.csv with --format"),
        (["--format", "openood"], 2, "Expected -o FILE.csv with --format openood"),
        (["--near", "noise"], 2, "Expected --near with --format openood only"),
    ],
)
def test_the_command_line_writes_it(run, tmp_path, options, code, text):
    words = [word.format(tmp_path) for word in options]
    result = CliRunner().invoke(cli, ["evaluate", "--run", str(run), "--method", "msp", *words])
    assert result.exit_code == code
    assert text in result.output
    if not code:
        assert (tmp_path / "x.csv").read_text().splitlines()[0] == HEAD
