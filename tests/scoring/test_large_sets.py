"""Large sets: intervals by formula as wide as those of the bootstrap, columns on the disk."""

import numpy as np
import pytest
from helpers.commands import call
from helpers.memory import peak_bytes
from helpers.recorded_run import make_run

import gradscore.columns
from gradscore.ablation import compare
from gradscore.choices import METRICS
from gradscore.columns import DiskColumns, MemoryColumns, columns_for
from gradscore.errors import InvalidArgument, RunError
from gradscore.evaluation import evaluate, evaluate_run
from gradscore.influence import NAME, influences, large_figures
from gradscore.methods import make_spec
from gradscore.resampling import bootstrap
from gradscore.run import RunStore
from gradscore.scoring import score_sets
from gradscore.tables import write_evaluation, write_rows

SPECS = [make_spec(name) for name in ("gradnorm", "msp", "energy")]


def drawn(ids, oods, apart, digits=None, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(apart, 1, ids), rng.normal(0, 1.3, oods)
    return scores if digits is None else tuple(np.round(one, digits) for one in scores)


@pytest.mark.parametrize(
    ("ids", "oods", "apart", "digits"),
    [(3000, 2000, 1.0, None), (1500, 5000, 2.0, 1), (4000, 1000, 3.0, None), (800, 800, 0.0, 0)],
    ids=["apart", "ties", "few ood", "chance, many ties"],
)
def test_deviations_are_those_of_the_bootstrap(ids, oods, apart, digits):
    sides = drawn(ids, oods, apart, digits)
    on_ids, on_oods = influences(*sides)
    assert np.abs(on_ids.mean(axis=1)).max() < 1e-12
    assert np.abs(on_oods.mean(axis=1)).max() < 1e-12
    got = np.sqrt(on_ids.var(axis=1) / ids + on_oods.var(axis=1) / oods)
    samples = bootstrap(sides[0], [sides[1]], replicates=1000)[:, 0, 0]
    expected = samples.std(axis=0)
    smooth = [0, 2, 3]
    np.testing.assert_allclose(got[smooth], expected[smooth], rtol=0.08)
    if digits is None:  # a threshold among ties jumps
        np.testing.assert_allclose(got[1], expected[1], rtol=0.2)


def test_auroc_is_delongs_covariance():
    ids, oods = map(np.sort, drawn(60, 40, 1.0, 1))
    wins = (ids[:, None] > oods) + 0.5 * (ids[:, None] == oods)
    on_ids, on_oods = influences(ids, oods)
    np.testing.assert_allclose(on_ids[0], wins.mean(axis=1) - wins.mean(), atol=1e-12)
    np.testing.assert_allclose(on_oods[0], wins.mean(axis=0) - wins.mean(), atol=1e-12)


def influences_at_once(ids, oods):
    """The formulas over whole arrays, as they stand in the module's text."""

    def wins(scores, others):
        sides = (np.searchsorted(others, scores, side=side) for side in ("left", "right"))
        return sum(sides) / (2 * len(others))

    def of_precision(found, others):
        n, m = len(found), len(others)
        share = n / (n + m)
        at_least = (n - np.searchsorted(found, found, side="left")) / n
        wrong = (m - np.searchsorted(others, found, side="left")) / m
        total = share * at_least + (1 - share) * wrong
        derivatives = (
            share * (1 - share) * wrong / total**2,
            -share * (1 - share) * at_least / total**2,
        )
        sums = [np.concatenate([[0], np.cumsum(one)]) / n for one in derivatives]
        places = [np.searchsorted(found, scores, side="right") for scores in (found, others)]
        return share * at_least / total + sums[0][places[0]], sums[1][places[1]]

    on_oods, on_ids = of_precision(-oods[::-1], -ids[::-1])
    return (
        (wins(ids, oods), -wins(oods, ids)),
        of_precision(ids, oods),
        (on_ids[::-1], on_oods[::-1]),
    )


@pytest.mark.parametrize("digits", [None, 1], ids=["no ties", "ties"])
@pytest.mark.parametrize("part", [1, 7, 1 << 16])
def test_influences_by_parts_are_to_the_last_bit_those_of_whole_arrays(digits, part, monkeypatch):
    monkeypatch.setattr("gradscore.influence.PART", part)
    ids, oods = map(np.sort, drawn(60, 90, 1.0, digits))
    of_ids, of_oods = influences(ids, oods)
    for metric, sides in zip((0, 2, 3), influences_at_once(ids, oods), strict=True):
        for got, whole in zip((of_ids, of_oods), sides, strict=True):
            assert np.array_equal(got[metric], whole - whole.mean())


def test_intervals_of_large_sets_hold_a_few_numbers_a_score():
    ids, oods = drawn(300_000, 300_000, 1.0)
    assert peak_bytes(lambda: large_figures(ids, [oods])) < 66 * len(ids)


def test_sides_that_do_not_meet_have_no_width():
    figures = large_figures(np.arange(10.0) + 20, [np.arange(5.0)])
    np.testing.assert_array_equal(figures[0, [0, 2, 3]], 1.0)
    np.testing.assert_array_equal(figures[0, 1], 0.0)
    with pytest.raises(InvalidArgument, match="Expected finite OOD scores, got nan in row 1"):
        influences([1.0, 2.0], [0.0, np.nan])


def test_the_mean_over_sets_shares_their_id_inputs():
    ids, ood = drawn(2000, 1500, 1.0)
    figures = large_figures(ids, [ood, ood[::-1]])
    np.testing.assert_allclose(figures[0], figures[2][:, :], rtol=0.3)
    width = figures[:, :, 2] - figures[:, :, 1]
    on_ids, on_oods = influences(ids, ood)
    variance = on_ids.var(axis=1) / len(ids) + on_oods.var(axis=1) / len(ood) / 2
    np.testing.assert_allclose(width[2], 2 * 1.959963984540054 * np.sqrt(variance))


def test_large_sets_are_evaluated_by_formula_and_say_so(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    small = evaluate_run(run, SPECS)
    assert (small.intervals, "intervals" in small.rows[0]) == ("", False)
    monkeypatch.setattr("gradscore.influence.LARGEST_RESAMPLED", 39)
    large = evaluate_run(run, SPECS)
    assert large.intervals == NAME
    assert all(row["intervals"] == NAME for row in large.rows)
    for one, other in zip(small.rows, large.rows, strict=True):
        for metric in METRICS:
            assert one[metric] == other[metric]
            assert 0 <= other[f"{metric}_low"] <= other[metric] <= other[f"{metric}_high"] <= 1
    for ending in (".csv", ".json", ".md", ".tex"):
        write_evaluation(tmp_path / f"e{ending}", large)
        assert "DeLong for AUROC" in (tmp_path / f"e{ending}").read_text()
    assert evaluate_run(run, SPECS, replicates=0).intervals == ""
    scores = drawn(50, 40, 1.0)
    got = evaluate(*scores)
    expected = large_figures(scores[0], [scores[1]])[0]
    assert [got.auroc, got.fpr95, got.aupr_in, got.aupr_out] == [tuple(row) for row in expected]


def test_intervals_of_one_table_are_of_one_kind(tmp_path, monkeypatch):
    run = RunStore(make_run(tmp_path / "run"))
    run.sets["train"].role = "id"
    monkeypatch.setattr("gradscore.influence.LARGEST_RESAMPLED", 50)  # of 40, 25, 60 and 30 rows
    rows = [row for row in evaluate_run(run, SPECS[:1]).rows if row["id"] == "digits"]
    assert {row["intervals"] for row in rows} == {NAME}
    scored = score_sets(run, ["digits", "noise"], SPECS[:1])
    ids, ood = (scored[name].columns["gradnorm"] for name in ("digits", "noise"))
    auroc = large_figures(ids, [ood])[0, 0].tolist()
    assert [rows[0][f"auroc{end}"] for end in ("", "_low", "_high")] == auroc


def test_a_large_run_beside_a_small_one_says_which_intervals_are_whose(
    tmp_path, monkeypatch, capsys
):
    make_run(tmp_path / "small")
    with RunStore.open_for_writing(make_run(tmp_path / "large")) as store:
        store.sets["train"].role = "id"
        store.save()
    monkeypatch.setattr("gradscore.influence.LARGEST_RESAMPLED", 50)
    rows = compare([tmp_path / "small", tmp_path / "large"], SPECS[:1], replicates=20)
    assert [row["intervals"] for row in rows] == ["bootstrap percentiles"] * 3 + [NAME] * 6
    assert len({tuple(row) for row in rows}) == 1
    small, large = tmp_path / "small", tmp_path / "large"
    named = f"95% intervals: bootstrap percentiles (run {small}); {NAME} (run {large})."
    write_rows(tmp_path / "t.md", rows)
    write_rows(tmp_path / "t.tex", rows)
    assert named in (tmp_path / "t.md").read_text().replace("\\", "").splitlines()
    assert f"% {named}" in (tmp_path / "t.tex").read_text().splitlines()
    assert call("compare", small, large, "--method", "gradnorm") == 0
    assert named in capsys.readouterr().err.splitlines()


def test_columns_on_the_disk_are_those_in_memory(tmp_path, monkeypatch):
    run = RunStore(make_run(tmp_path / "run"))
    sets = ["digits", "noise"]
    held = score_sets(run, sets, SPECS)
    monkeypatch.setattr(gradscore.columns, "IN_MEMORY", 0)
    kept = score_sets(run, sets, SPECS, paths=False)
    for name in sets:
        assert isinstance(held[name].columns, MemoryColumns)
        assert isinstance(kept[name].columns, DiskColumns)
        assert list(kept[name].columns) == list(held[name].columns)
        assert (len(kept[name].path), len(held[name].path)) == (0, len(held[name]))
        for column, values in held[name].columns.items():
            np.testing.assert_array_equal(kept[name].columns[column], values)
    assert evaluate_run(run, SPECS).rows


def test_a_full_disk_names_the_folder(monkeypatch):
    columns = DiskColumns(["a", "b"], 4)
    columns.put("b", 2, np.array([1.0, 2.0]))
    assert columns["b"].tolist() == [0, 0, 1, 2]
    with pytest.raises(RunError, match="ends before its size"):
        DiskColumns(["a"], 4)["a"]

    def full(*how):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(RunError, match=r"Cannot keep scores in .*No space left.*TMPDIR"):
        columns.put("a", 0, np.ones(1))


@pytest.mark.parametrize(("count", "kind"), [(10, MemoryColumns), (50_000_000, DiskColumns)])
def test_large_columns_go_to_the_disk(count, kind):
    assert type(columns_for(["a"], count)) is kind
