"""Evaluations in terminals of any width: which columns go first, and that it is said."""

import re

import pytest
from helpers.commands import call
from helpers.recorded_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("evaluated") / "run")


@pytest.fixture
def shown(capsys, monkeypatch, run):
    """Return what a command prints in a terminal of some width."""

    def shown(width, *words):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        assert call(*words, "--run", run, "--method", "msp", "-q") == 0
        return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)

    return shown


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (130, None),
        (80, "the 95% intervals"),
        (30, "the 95% intervals, AUPR-out, AUPR-in"),
        (12, "the 95% intervals, AUPR-out, AUPR-in, FPR95"),
    ],
)
def test_the_mean_loses_intervals_then_figures(shown, width, left_out):
    text = shown(width, "evaluate")
    assert "OOD: mean of noise, photos; percent" in " ".join(text.split())
    told = re.findall(r"Too narrow for (.*): a wider terminal", text)
    assert told == ([left_out] if left_out else [])
    assert ("[95% interval]" in " ".join(text.split())) == (left_out is None)
    assert "AUROC" in text


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (80, None),
        (44, "photos FPR95, noise FPR95"),
        (34, "photos FPR95, noise FPR95, photos AUROC"),
        (10, "photos FPR95, noise FPR95, photos AUROC, noise AUROC, mean FPR95"),
    ],
)
def test_all_sets_lose_fpr95_then_sets_and_keep_the_mean(shown, width, left_out):
    text = shown(width, "evaluate", "--full")
    told = re.findall(r"Too narrow for (.*): a wider terminal", text)
    assert told == ([left_out] if left_out else [])


def test_scores_lose_quartiles_then_labels(shown):
    text = shown(44, "score")
    assert max(map(len, text.splitlines()[:-3])) <= 44
    assert "Too narrow for 75%" in text
    assert "median" in text
    assert "Too narrow" not in shown(90, "score")


def test_the_shown_figures_can_be_chosen(shown):
    text = shown(100, "evaluate", "--full", "--metric", "aupr_out")
    assert text.count("AUPR-out") == 3
    assert "AUROC" not in text
    assert "FPR95" not in shown(130, "evaluate", "--metric", "auroc")


def test_runs_side_by_side_show_their_id_accuracy(run, capsys):
    assert call("compare", run, run, "--method", "msp", "-q") == 0
    text = capsys.readouterr().out
    assert "ID accuracy" in text
    assert "97.4" in text
