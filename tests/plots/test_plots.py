"""Each figure names its axes, units and direction, and shows what the rows say."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers.recorded_run import make_run
from matplotlib.colors import to_rgba

from gradscore.ablation import ABLATIONS, ablate, compare
from gradscore.errors import InvalidArgument, RunError
from gradscore.methods import ScoreSpec, make_specs
from gradscore.metrics import auroc, fpr95
from gradscore.naming import row_namer
from gradscore.palette import TONES
from gradscore.plots import (
    canvas,
    plot_ablation,
    plot_comparison,
    plot_roc,
    plot_scores,
    save_bars,
    save_densities,
    save_lines,
    save_roc,
    save_scatter,
)
from gradscore.plots.curves import find_corner, roc_points
from gradscore.plots.style import set_looks
from gradscore.recorded import Run
from gradscore.scoring import score_sets


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
    save = canvas.save_figure
    monkeypatch.setattr(
        canvas, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path)
    )
    return figures


def named(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def title_of(figure):
    return figure.get_suptitle()


@pytest.mark.parametrize("kind", ABLATIONS)
def test_every_ablation_has_a_figure_that_says_what_it_shows(
    run, evaluations, drawn, tmp_path, kind
):
    files = plot_ablation(kind, run, evaluations[kind], tmp_path / f"{kind}.png")
    beside = [] if kind in ("layers", "p", "temperature") else [f"{kind}-scores.png"]
    assert [file.name for file in files] == [f"{kind}.png", *beside]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    for figure in drawn:
        assert title_of(figure).startswith("GradNorm")
        assert "\nModel python:tests:drawn. ID: digits (40 images)." in title_of(figure)
        assert figure.legends
        axes = [axis.get_xlabel() + axis.get_ylabel() for axis in figure.axes]
        directions = [text.count("is better") for text in axes]
        title = title_of(figure).replace("\n", " ")
        assert directions == [title.count("Higher = in-distribution") == 0] * len(axes)
        assert "nats" not in "".join(axes)


def test_lines_show_the_rows_and_stand_evenly(evaluations, drawn, tmp_path):
    save_lines(tmp_path / "p.png", evaluations["p"].rows, over="p")
    axis = drawn[0].axes[0]
    assert axis.get_ylabel() == "AUROC (%), higher is better"
    assert [t.get_text() for t in axis.get_xticklabels()][::9] == ["0.3", "∞"]
    assert axis.get_xlabel() == "Order p of the norm (evenly spaced, not to scale)"
    means = [100 * row["auroc"] for row in evaluations["p"].rows if row["ood"] == "mean"]
    mean = axis.lines[-1]
    np.testing.assert_allclose(mean.get_ydata(orig=False), means)
    assert mean.get_xdata(orig=False).tolist() == list(range(10))
    assert axis.get_legend_handles_labels()[1][-2:] == ["mean", "95% interval of the mean"]


def sweep(figures, over="p", ood="mean"):
    """Return rows of a sweep whose AUROC is given, and whose FPR95 is one minus it."""
    ends = dict.fromkeys(f"{m}{e}" for m in ("auroc", "fpr95") for e in ("_low", "_high"))
    return [
        {"id": "digits", "ood": ood, over: float(value), "auroc": auroc, "fpr95": 1 - auroc} | ends
        for value, auroc in figures.items()
    ]


def test_a_setting_far_below_all_others_stands_at_the_edge(drawn, tmp_path):
    figures = {0.3: 0.15, 0.5: 0.71, 1: 0.95, 2: 0.94, 3: 0.93, 4: 0.92}
    save_lines(tmp_path / "p.png", sweep(figures), over="p")
    better, worse = drawn[0].axes
    assert [text.get_text() for text in better.texts] == ["15.0", "71.0"]
    assert [text.get_text() for text in worse.texts] == ["85.0", "29.0"]
    assert better.get_ylim() == pytest.approx((92 - 0.06 * 3, 95 + 0.06 * 3))
    assert worse.get_ylim() == pytest.approx((5 - 0.06 * 3, 8 + 0.06 * 3))
    assert "Figures at the edge: means that lie beyond the axis." in title_of(drawn[0])
    even = {0.3: 0.5, 0.5: 0.6, 1: 0.7, 2: 0.8, 3: 0.9, 4: 0.99}
    save_lines(tmp_path / "p.png", sweep(even), over="p")
    assert all(not axis.texts for axis in drawn[1].axes)
    assert title_of(drawn[1]) == ""


def test_temperatures_stand_on_a_log_scale_with_the_settings_as_ticks(drawn, tmp_path):
    rows = sweep({0.5: 0.9, 1: 0.91, 2: 0.93, 1000: 0.92}, over="temperature")
    save_lines(tmp_path / "t.png", rows, over="temperature")
    axis = drawn[0].axes[0]
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0.5", "1", "2", "1000"]
    assert axis.get_xticks().tolist() == [0.5, 1, 2, 1000]
    assert axis.xaxis.get_minorticklocs().size == 0


def test_of_several_id_sets_each_has_lines_of_its_own(drawn, tmp_path):
    rows = sweep({1: 0.9, 2: 0.8}, ood="noise")
    rows += [row | {"id": "night", "auroc": 0.5} for row in rows]
    save_lines(tmp_path / "p.png", rows, over="p")
    axis = drawn[0].axes[0]
    assert [line.get_ydata().tolist() for line in axis.lines] == [[90, 80], [50, 50]]
    assert named(drawn[0]) == ["digits against noise", "night against noise"]
    first, second = axis.lines
    assert first.get_color() == second.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_a_set_has_one_colour_in_every_figure_whichever_sets_are_drawn(drawn, tmp_path):
    roles = {"digits": "id", "noise": "ood", "train": None, "photos": "ood", "signs": "ood"}
    looks = set_looks(roles)
    drawn_sets = {name: np.arange(20.0) for name in ("digits", "signs", "noise")}
    rows = sweep({1: 0.9, 2: 0.8}, ood="signs")
    curves = {"signs": {"msp": ([1.0, 2.0], [0.0, 1.0])}}
    colors = {name: look.color for name, look in looks.items()}
    save_densities(tmp_path / "d.png", {"score": drawn_sets}, looks=looks)
    save_scatter(tmp_path / "s.png", drawn_sets, drawn_sets, labels=("a", "b"), looks=looks)
    save_lines(tmp_path / "p.png", rows, over="p", looks=looks)
    save_bars(
        *(tmp_path / "b.png", rows),
        **{"by": lambda row: "gradnorm", "across": lambda row: row["ood"], "looks": looks},
    )
    save_roc(tmp_path / "r.png", curves, colors=colors)
    densities, dots, lines, bars, roc = (figure.axes[0] for figure in drawn)
    color = TONES["ood2"].line
    assert densities.patches[1].get_edgecolor() == to_rgba(color)
    assert dots.collections[1].get_edgecolor()[0][:3].tolist() == list(to_rgba(color)[:3])
    assert lines.lines[0].get_color() == color
    assert roc.title.get_color() == color
    assert bars.patches[0].get_facecolor() == to_rgba(TONES["ood2"].fill)


def test_a_figure_draws_the_threshold_that_it_is_given(run, tmp_path, drawn):
    spec = ScoreSpec("msp")
    scored = score_sets(Run(run).store, ["digits", "noise"], [spec])
    how = {"threshold": 0.125, "threshold_label": "threshold of gate_1.st", "promise": "At most."}
    plot_scores(run, scored, [spec], tmp_path / "s.png", **how)
    assert drawn[0].axes[0].lines[0].get_xdata() == [0.125, 0.125]
    assert named(drawn[0])[-1] == "threshold of gate_1.st"
    assert title_of(drawn[0]).endswith("At most.")


def test_a_title_is_broken_where_the_figure_ends(drawn, tmp_path):
    long = "Model timm:resnet18. " + "A sentence that says much. " * 9
    save_bars(
        *(tmp_path / "b.png", bar_rows(2)),
        **{"by": lambda r: r["layers"], "across": lambda r: r["ood"], "title": "Many words " * 30},
        subtitle=long,
    )
    figure = drawn[0]
    assert title_of(figure).replace("\n", " ").split()[-1] == "much."
    figure.draw_without_rendering()
    assert 0.8 * figure.bbox.x1 < figure._suptitle.get_window_extent().x1 <= figure.bbox.x1


def test_densities_are_shares_of_each_set_in_one_style(drawn, tmp_path):
    sets = {"noise": np.arange(50.0), "digits": np.arange(100.0), "more": np.arange(9.0)}
    roles = {"digits": "id", "noise": "ood", "more": None}
    how = {"thresholds": {"score": 5.0}, "threshold_label": "threshold of gate.safetensors"}
    save_densities(tmp_path / "d.svg", {"score": sets}, looks=set_looks(roles), **how)
    (axis,) = drawn[0].axes
    assert len(axis.patches) == 3
    for steps in axis.patches:
        assert sum(steps.get_data().values) == pytest.approx(100)
    assert [steps.get_fill() for steps in axis.patches] == [True, False, False]
    assert axis.lines[0].get_xdata() == [5.0, 5.0]
    assert named(drawn[0]) == [
        *("digits (ID)", "noise (OOD)", "more"),
        "threshold of gate.safetensors",
    ]


def test_an_axis_that_is_cut_says_so(drawn, tmp_path):
    scores = {"digits": np.arange(1000.0)}
    save_densities(tmp_path / "d.png", {"score": scores}, looks=set_looks({"digits": "id"}))
    assert drawn[-1].axes[0].get_xlabel() == "score\n(the end bins hold the outer 0.2% too)"
    equal = {"x": {"a": [1.0, 1.0], "b": [1.0]}}
    save_densities(tmp_path / "d.png", equal, looks=set_looks({"a": "id", "b": None}))
    assert drawn[-1].axes[0].get_xlabel() == "x"


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_two_figures_of_the_same_rows_are_identical_files(run, evaluations, tmp_path, ending):
    for name in ("one", "two"):
        plot_ablation("target", run, evaluations["target"], tmp_path / f"{name}.{ending}")
    for part in ("", "-scores"):
        one, two = (tmp_path / f"{name}{part}.{ending}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_scores_are_drawn_with_the_threshold_of_fpr95(run, tmp_path, drawn):
    specs = make_specs(["gradnorm", "msp"], p=(1.0, 2.0))
    scored = score_sets(Run(run).store, ["digits", "noise", "train"], specs)
    plot_scores(run, scored, specs, tmp_path / "s.png")
    first, second, third = drawn[0].axes[:3]
    assert first.get_xlabel().startswith("GradNorm score, p = 1\n")
    assert second.get_xlabel().startswith("GradNorm score, p = 2\n")
    assert third.get_xlabel().startswith("msp\n")
    ids, oods = (scored[name].columns["msp"] for name in ("digits", "noise"))
    threshold = third.lines[0].get_xdata()[0]
    assert np.mean(ids >= threshold) >= 0.95
    assert np.mean(ids > threshold) < 0.95
    assert np.mean(oods >= threshold) == fpr95(ids, oods)
    assert named(drawn[0])[:3] == ["digits (ID)", "noise (OOD)", "train"]
    assert (
        named(drawn[0])[3] == "keeps 95% of the ID images drawn here (not a detector's threshold)"
    )


def test_the_area_below_a_roc_curve_is_the_auroc():
    rng = np.random.default_rng(0)
    for size in (30, 5000):
        ids, oods = rng.normal(1, 1, size), rng.normal(0, 1, size // 2).round(1)
        x, y = roc_points(ids, oods)
        assert len(x) <= min(1003, size + size // 2 + 1)
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        assert np.trapezoid(y, x) == pytest.approx(auroc(ids, oods), abs=2e-3)


def test_a_roc_has_a_panel_a_set_and_the_best_scores(run, tmp_path, drawn):
    names = ["gradnorm", "u", "v", "kl", "msp", "max_logit", "energy", "gen", "scale"]
    plot_roc(run, make_specs(names), tmp_path / "r.png")
    assert title_of(drawn[0]).startswith("ROC of the ")
    assert "of 9 scores" in title_of(drawn[0])
    assert [axis.get_title() for axis in drawn[0].axes] == ["noise", "photos"]
    assert drawn[0].axes[0].get_xlabel() == "OOD images accepted (%)"
    assert "gradnorm" in named(drawn[0])
    assert len(named(drawn[0])) == 7
    assert "Line widths have no meaning" in title_of(drawn[0])
    plot_roc(run, make_specs(["msp", "u"]), tmp_path / "r.png", sets=["digits", "noise"])
    assert title_of(drawn[1]).startswith("ROC\nModel python:tests:drawn. ID: digits (40 images).")
    assert sorted(named(drawn[1])) == ["95% of ID accepted", "msp", "u"]


def test_curves_that_lie_on_each_other_all_stay_visible(drawn, tmp_path):
    pair = (np.arange(50.0) + 20, np.arange(50.0))
    save_roc(tmp_path / "r.png", {"noise": {"kl": pair, "gen": pair, "odin": pair}})
    widths = [line.get_linewidth() for line in drawn[0].axes[0].lines[2:]]
    assert widths == sorted(widths, reverse=True)
    assert min(-np.diff(widths)) > 1


def test_the_corner_where_good_curves_differ_is_enlarged(drawn, tmp_path):
    good = (np.arange(100.0) + 80, np.arange(100.0))
    bad = (np.arange(100.0), np.arange(100.0))
    save_roc(tmp_path / "r.png", {"noise": {"good": good, "other": good}})
    (inner,) = drawn[0].axes[0].child_axes
    x, y = (100 * part for part in roc_points(*good))
    assert inner.get_xlim() == (0, pytest.approx(max(x[y < 97])))
    assert inner.get_ylim()[0] == pytest.approx(np.interp(inner.get_xlim()[1] / 10, x, y))
    assert len(inner.lines) == 3
    save_roc(tmp_path / "r.png", {"noise": {"good": good, "bad": bad}})
    assert drawn[1].axes[0].child_axes == []
    perfect = np.array([[0.0, 0.0, 100.0], [0.0, 100.0, 100.0]])
    assert find_corner([perfect]) == (5.0, 95.0)


def test_a_comparison_groups_bars_by_score_and_names_what_differs(run, tmp_path, drawn):
    specs = make_specs(["msp", "gradnorm"], p=(1.0, 2.0))
    rows = compare([run, run], specs, replicates=0)
    for row in rows[len(rows) // 2 :]:
        row["model"], row["run"] = "other", "elsewhere"
    plot_comparison(rows, tmp_path / "c.png")
    assert named(drawn[0]) == ["python:tests:drawn", "other"]
    groups = [text.get_text() for text in drawn[0].axes[0].get_yticklabels()]
    assert sorted(groups) == ["gradnorm, p = 1", "gradnorm, p = 2", "msp"]
    assert title_of(drawn[0]) == "2 runs side by side: mean of 2 OOD sets\nID: digits."
    first, second = drawn[0].axes[0].containers
    lengths = [bar.get_width() for bar in first]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths == [bar.get_width() for bar in second]


def test_runs_with_different_ood_sets_are_compared_without_their_means(run, tmp_path, drawn):
    rows = compare([run, run], [ScoreSpec("msp")], replicates=20)
    for row in rows[3:]:
        row["model"], row["run"] = "other", "elsewhere"
    rows[3]["ood"] = "textures"
    plot_comparison(rows, tmp_path / "c.png")
    axis = drawn[0].axes[0]
    groups = [text.get_text() for text in axis.get_yticklabels()]
    assert groups == ["noise", "photos", "textures"]
    at = [[bar.get_y() + bar.get_height() / 2 for bar in bars] for bars in axis.containers[1::2]]
    np.testing.assert_allclose(at, [[-0.2, 0.8], [2.2, 1.2]])
    assert title_of(drawn[0]).endswith("ID: digits. Thin lines: 95% intervals.")


def test_what_cannot_be_drawn_is_refused(run, evaluations, tmp_path):
    with pytest.raises(InvalidArgument, match=r"No figure for ablation 'grid'; .* layers, p"):
        plot_ablation("grid", run, evaluations["p"], tmp_path / "p.png")
    with pytest.raises(InvalidArgument, match=r"ending in \.png, \.pdf, \.svg, got .*p\.xyz"):
        plot_ablation("p", run, evaluations["p"], tmp_path / "p.xyz")
    with pytest.raises(RunError, match=r"Cannot write .*No such file"):
        plot_ablation("p", run, evaluations["p"], tmp_path / "absent" / "p.png")


def bar_rows(count):
    none = dict.fromkeys(("auroc_low", "fpr95_low"))
    return [
        {"layers": f"block{k}", "ood": "a", "auroc": 0.5, "fpr95": 0.5} | none
        for k in range(count)
    ]


def test_twenty_bars_of_a_group_differ(drawn, tmp_path):
    rows = bar_rows(20)
    save_bars(tmp_path / "b.png", rows, by=lambda r: r["ood"], across=lambda r: r["layers"])
    looks = [(bar.get_hatch(), bar.get_facecolor()) for bar in drawn[0].axes[0].patches]
    assert len(set(looks)) == 20
    assert all(len(set(part)) == 7 for part in zip(*looks[:7], strict=True))


def test_one_bar_a_group_needs_no_legend(drawn, tmp_path):
    save_bars(tmp_path / "b.png", bar_rows(3), by=lambda r: r["layers"], across=lambda r: r["ood"])
    assert drawn[0].legends == []


def test_more_ood_sets_than_bars_are_drawn_as_their_mean(run, evaluations, drawn, tmp_path):
    rows = [row for row in evaluations["layers"].rows if row["ood"] != "photos"]
    mean = [row for row in rows if row["ood"] == "mean"]
    many = [type(row)(row.spec, row | {"ood": f"s{k}"}) for row in mean for k in range(8)]
    for kept, expected in ((rows, {"noise"}), (many + mean, {"mean"})):
        evaluation = replace(evaluations["layers"], rows=kept)
        plot_ablation("layers", run, evaluation, tmp_path / "l.png")
        labels = drawn[-1].axes[0].get_legend_handles_labels()[1]
        assert set(labels) == expected


def test_importing_the_module_does_not_import_matplotlib():
    code = "import gradscore.plots, sys; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_row_is_named_by_what_differs_within_its_method():
    rows = [
        {"method": "gradnorm", "p": 1.0, "temperature": 1.0},
        {"method": "gradnorm", "p": 2.0, "temperature": 1.0},
        {"method": "odin", "p": None, "temperature": 1000.0},
        {"method": "odin", "p": None, "temperature": 10.0},
        {"method": "msp", "p": None, "temperature": 1.0},
    ]
    assert [row_namer(rows, ("method",))(row) for row in rows] == [
        "gradnorm, p = 1",
        "gradnorm, p = 2",
        "odin, T = 1000",
        "odin, T = 10",
        "msp",
    ]
