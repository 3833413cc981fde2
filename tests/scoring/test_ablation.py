"""Ablations ask what the paper's tables and figures do, and answer it from one read."""

import math

import pytest
from helpers.recorded_run import make_run

from gradscore import choices
from gradscore.ablation import ABLATIONS, ablate, ablation_specs, compare
from gradscore.errors import InvalidArgument, NotRecorded
from gradscore.evaluation import evaluate_run
from gradscore.methods import ScoreSpec
from gradscore.run import RunStore


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


EXPECTED = {
    "layers": ("layers", ["stem", "block1", "all", "last"]),
    "p": ("p", [0.3, 0.5, 0.8, 1, 2, 3, 4, 5, 6, math.inf]),
    "temperature": ("temperature", [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]),
    "target": ("target", ["uniform", "one-hot"]),
    "decomposition": ("method", ["u", "v", "gradnorm"]),
    "kl": ("method", ["kl", "gradnorm"]),
}


def test_the_table_has_the_names_that_the_command_line_shows():
    assert tuple(ABLATIONS) == choices.ABLATIONS


@pytest.mark.parametrize("kind", ABLATIONS)
def test_asks_for_the_papers_settings_in_order(run, kind):
    option, values = EXPECTED[kind]
    assert [getattr(spec, option) for spec in ablation_specs(kind, run)] == values


def test_all_ablations_come_from_one_read_and_equal_each_alone(run, monkeypatch):
    reads = []
    blocks = RunStore.blocks

    def counted(self, name, **how):
        reads.append(name)
        return blocks(self, name, **how)

    monkeypatch.setattr(RunStore, "blocks", counted)
    together = ablate(run, list(ABLATIONS), replicates=20)
    assert sorted(reads) == ["digits", "noise", "photos"]
    for kind, evaluation in together.items():
        alone = evaluate_run(run, ablation_specs(kind, run), replicates=20)
        assert evaluation == alone


def test_rows_are_those_of_the_kind(run):
    rows = ablate(run, "temperature", replicates=0)["temperature"].rows
    assert [row["temperature"] for row in rows if row["ood"] == "mean"] == EXPECTED["temperature"][
        1
    ]


def test_an_unknown_ablation_is_refused(run):
    with pytest.raises(InvalidArgument, match="Unknown ablation 'depth'; known: layers, p, temp"):
        ablate(run, "depth")


def test_layers_need_recorded_norms(tmp_path):
    with pytest.raises(NotRecorded, match=r"--run .*run --model python:tests:drawn --layers all"):
        ablate(make_run(tmp_path / "run", passes=()), "layers")


def test_runs_stand_side_by_side(run, tmp_path):
    other = make_run(tmp_path / "other")
    rows = compare([run, other], [ScoreSpec("msp")], replicates=10)
    assert [row["run"] for row in rows[::3]] == [str(run), str(other)]
    assert rows[0]["model"] == "python:tests:drawn"
    assert {k: v for k, v in rows[0].items() if k in ("auroc", "ood")} == {
        k: v for k, v in rows[3].items() if k in ("auroc", "ood")
    }
    with pytest.raises(InvalidArgument, match="at least one run"):
        compare([], [ScoreSpec("msp")])
