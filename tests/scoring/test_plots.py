"""Each figure names its axes, units and direction, and shows what the rows say."""

import subprocess
import sys

import numpy as np
import pytest
from helpers.recorded_run import make_run

from gradscore import plots
from gradscore.ablation import ABLATIONS, ablate, compare
from gradscore.errors import GradScoreError, InvalidArgument, RunError
from gradscore.methods import ScoreSpec
from gradscore.plots import drawing, plot_ablation, plot_comparison, save_densities

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def evaluations(run):
    return ablate(run, ABLATIONS, replicates=20)


@pytest.fixture
def drawn(monkeypatch):
    """Collect every figure that is saved."""
    figures = []
    save = drawing.save_figure
    monkeypatch.setattr(
        drawing, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path)
    )
    return figures


@pytest.mark.parametrize("kind", ABLATIONS)
def test_every_ablation_has_a_figure_with_named_axes(run, evaluations, drawn, tmp_path, kind):
    files = plot_ablation(kind, run, evaluations[kind], tmp_path / f"{kind}.png")
    beside = [] if kind in ("layers", "p", "temperature") else [f"{kind}-scores.png"]
    assert [file.name for file in files] == [f"{kind}.png", *beside]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    for figure in drawn:
        assert figure.legends
        for axis in figure.axes:
            text = axis.get_xlabel() + axis.get_ylabel()
            assert axis.get_xlabel()
            assert axis.get_ylabel()
            assert "is better" in text or "higher = ID" in text


def test_lines_show_the_rows_and_stand_evenly(evaluations, drawn, tmp_path):
    drawing.save_lines(tmp_path / "p.png", evaluations["p"].rows, over="p")
    axis = drawn[0].axes[1]
    assert [t.get_text() for t in axis.get_xticklabels()][::9] == ["0.3", "∞"]
    means = [100 * row["auroc"] for row in evaluations["p"].rows if row["ood"] == "mean"]
    mean = axis.lines[-1]
    np.testing.assert_allclose(mean.get_ydata(orig=False), means)
    assert mean.get_xdata(orig=False).tolist() == list(range(10))
    assert axis.get_legend_handles_labels()[1][-2:] == ["mean", "95% interval of the mean"]


def test_densities_are_shares_of_each_set(drawn, tmp_path):
    sets = {"digits": np.arange(100.0), "noise": np.arange(50.0)}
    save_densities(tmp_path / "d.svg", {"score, higher = ID": sets}, id_names=["digits"])
    axis = drawn[0].axes[0]
    for share in (*(p.get_data().values for p in axis.patches), axis.lines[0].get_ydata()):
        assert sum(share) == pytest.approx(100)
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["digits (ID)", "noise (OOD)"]


def test_an_axis_that_is_cut_says_so(drawn, tmp_path):
    scores = {"digits": np.arange(1000.0)}
    save_densities(tmp_path / "d.png", {"score": scores}, id_names=["digits"])
    label = drawn[-1].axes[0].get_xlabel()
    assert label == "score\n(the end bins hold the lowest and the highest 0.2%, too)"
    equal = {"x": {"a": [1.0, 1.0], "b": [1.0]}}
    save_densities(tmp_path / "d.png", equal, id_names=["a"])
    assert drawn[-1].axes[0].get_xlabel() == "x"


def test_equal_scores_are_drawn_too(tmp_path):
    save_densities(tmp_path / "d.png", {"x": {"a": [1.0, 1.0], "b": [1.0]}}, id_names=["a"])


def test_two_figures_of_the_same_rows_are_identical_files(run, evaluations, tmp_path):
    for ending in ("png", "pdf"):
        for name in ("one", "two"):
            plot_ablation("target", run, evaluations["target"], tmp_path / f"{name}.{ending}")
        one, two = (tmp_path / f"{name}-scores.{ending}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_comparison_names_what_differs(run, tmp_path, drawn):
    rows = compare([run, run], [ScoreSpec("msp"), ScoreSpec("kl")], replicates=0)
    for row in rows[6:]:
        row["model"], row["run"] = "other", "elsewhere"
    plot_comparison(rows, tmp_path / "c.png")
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == [
        "python:tests:drawn, msp",
        "python:tests:drawn, kl",
        "other, msp",
        "other, kl",
    ]


def test_runs_with_different_ood_sets_are_compared_without_their_means(run, tmp_path, drawn):
    rows = compare([run, run], [ScoreSpec("msp")], replicates=20)
    for row in rows[3:]:
        row["model"], row["run"] = "other", "elsewhere"
    rows[3]["ood"] = "textures"
    plot_comparison(rows, tmp_path / "c.png")
    axis = drawn[0].axes[0]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["noise", "photos", "textures"]
    at = [[bar.get_x() + bar.get_width() / 2 for bar in bars] for bars in axis.containers[1::2]]
    np.testing.assert_allclose(at, [[-0.2, 0.8], [2.2, 1.2]])


def test_what_cannot_be_drawn_is_refused(run, evaluations, tmp_path):
    with pytest.raises(InvalidArgument, match=r"No figure for ablation 'grid'; .* layers, p"):
        plot_ablation("grid", run, evaluations["p"], tmp_path / "p.png")
    with pytest.raises(InvalidArgument, match=r"ending in \.png, \.pdf, \.svg, got .*p\.xyz"):
        plot_ablation("p", run, evaluations["p"], tmp_path / "p.xyz")
    with pytest.raises(RunError, match=r"Cannot write .*No such file"):
        plot_ablation("p", run, evaluations["p"], tmp_path / "absent" / "p.png")


def test_without_matplotlib_its_installation_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GradScoreError, match="pip install matplotlib"):
        save_densities(tmp_path / "d.png", {"x": {"a": [1.0]}}, id_names=["a"])


def test_bars_of_all_layers_differ(drawn, tmp_path):
    rows = [
        {"layers": f"block{k}", "ood": "mean", "fpr95": 0.5, "fpr95_low": None} for k in range(20)
    ]
    drawing.save_bars(tmp_path / "b.png", rows, by=lambda row: row["layers"])
    looks = [(bar.get_hatch(), bar.get_facecolor()) for bar in drawn[0].axes[0].patches]
    assert len(set(looks)) == 20
    assert all(len(set(part)) == 7 for part in zip(*looks[:7], strict=True))


def test_importing_the_module_does_not_import_matplotlib():
    code = "import gradscore.plots, sys; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_legend_names_its_settings():
    rows = [
        {"method": "gradnorm", "p": 1.0, "temperature": 1.0},
        {"method": "odin", "p": None, "temperature": 1000.0},
    ]
    name = plots._row_name(rows, ("method", "p", "temperature"))
    assert [name(row) for row in rows] == ["gradnorm, T = 1", "odin, T = 1000"]
