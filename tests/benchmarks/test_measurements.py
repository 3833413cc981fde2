"""Benchmarks measure what they name: small cases, and methods that fail."""

import csv

import block_means
import closed_form
import extract
import norms
import products
import pytest
import score
import torch
from layers import Layer
from timing import fraction, interleaved

from gradscore.closed_form import last_layer_score

SMALL = {"batch": 2, "size": 32, "repeats": 2, "seconds": 60.0, "memory": ("gradscore",)}


@pytest.mark.slow
def test_norms_are_measured_beside_the_ordinary_pass_in_fresh_processes(monkeypatch):
    monkeypatch.setattr(norms, "PEAKS", 1)
    methods = ("gradscore", "unknown")
    rows = list(norms.measure("cifar:resnet20", "block", methods=methods, **SMALL))
    assert [row["method"] for row in rows] == ["forward and backward", *methods]
    for row in rows[:2]:
        assert row["lowest"] <= row["ratio"] <= row["highest"]
        assert row["rounds"] == 2
        assert row["note"] == ""
    assert rows[0]["ratio"] == 1.0
    assert rows[0]["peak_mib"] == ""
    assert rows[1]["peak_mib"] > 0
    assert rows[2]["ratio"] == ""
    assert "KeyError" in rows[2]["note"]


def test_norms_of_several_methods_are_measured_in_turns_in_one_process(monkeypatch):
    def here(script, name, *given):
        return getattr(norms, name)(*given)

    monkeypatch.setattr(norms, "in_fresh_process", here)
    together = list(
        norms.measure("digits", "all", way="together", methods=("gradscore", "unknown"), batch=2)
    )
    assert [(row["way"], row["rounds"]) for row in together[:2]] == [("together", 7)] * 2
    assert "KeyError" in together[2]["note"]


def test_each_model_gets_the_images_that_it_expects():
    model, images = norms.drawn("digits", 2, 8, "cpu")
    assert model(images).shape == (2, 6)
    (first, *_) = norms.measure("digits", "last", batch=2, methods=(), repeats=1, memory=())
    assert (first["size"], first["note"]) == (8, "")
    (found,) = extract.measure(["digits"], images=4, batch_size=4, repeats=1)
    assert found.extract > 0


def test_block_means_are_measured_beside_the_forward(tmp_path, capsys):
    monitored = torch.get_num_threads()
    try:
        block_means.main(["--model", "digits", "-o", str(tmp_path / "b.csv")])
    finally:
        torch.set_num_threads(monitored)
    (row,) = csv.DictReader((tmp_path / "b.csv").read_text().splitlines())
    assert (row["model"], row["stages"], row["rounds"]) == ("digits", "4", "20")
    assert float(row["quarter"]) <= float(row["ratio"]) <= float(row["three_quarters"])


def test_a_benchmark_of_which_nothing_succeeds_fails(monkeypatch):
    failed = {"model": "digits", "ratio": "", "note": "ValueError: no"}
    monkeypatch.setattr(norms, "measure", lambda *_, **how: [failed])
    with pytest.raises(SystemExit, match="failed, the first with: ValueError: no"):
        norms.main(["--model", "digits"])
    monkeypatch.setattr(norms, "measure", lambda *_, **how: [failed, {**failed, "note": ""}])
    norms.main(["--model", "digits"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("script", [closed_form, norms, extract], ids=lambda it: it.__name__)
def test_a_device_that_is_not_there_is_one_line(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--device", "cuda"])
    *_, last = capsys.readouterr().err.splitlines()
    assert last.endswith("Expected a CUDA device, found none; use --device cpu.")


def test_functions_take_turns_and_ratios_are_of_one_round():
    calls = []
    taken = interleaved(
        {name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3, seconds=60
    )
    assert calls == ["a", "b"] * 4
    assert [len(seconds) for seconds in taken.values()] == [3, 3]
    assert fraction([1.0, 2.0, 30.0], [2.0, 2.0, 10.0]) == 1.0


def test_the_closed_form_is_measured_beside_limits_and_peers():
    rows = list(closed_form.compare([(64, 16, 5)], repeats=2, seconds=0.1))
    names = [row["figure"] for row in rows]
    ours = ["gradscore from logits", "gradscore from logits, T = 1024", "plain form"]
    assert names[:6] == ["read once", *ours, "equation", "equation, in blocks"]
    assert names[6:8] == ["bare product", "gradscore from head"]
    assert {"backward a row", "backward a row, fresh layer", "vmap(grad)"} <= set(names[8:])
    assert all(row["us_per_row"] > 0 for row in rows)
    assert all(rows[position]["of_limit"] > 0 for position in (1, 2, 3, 4, 5, 7))
    assert closed_form.slope([1, 10, 100], [2, 200, 20000]) == pytest.approx(2)


def test_extraction_is_measured_beside_the_bare_loop():
    (found,) = extract.measure(["cifar:resnet20"], images=8, batch_size=4, repeats=2)
    assert found.lowest <= found.fraction <= found.highest
    assert found.extract > 0
    assert found.bare > 0


def test_score_is_measured_beside_reading(tmp_path):
    record = tmp_path / "score.csv"
    score.main(["--rows", "64", "-o", str(record)])
    (row,) = csv.DictReader(record.read_text().splitlines())
    assert row["rows"] == "64"
    assert float(row["of_limit"]) > 0


def test_sweeps_are_timed_beside_reading(tmp_path):
    score.write_run(tmp_path / "run", rows=40, features=6, classes=5)
    rows = list(score.measure_sweeps(tmp_path / "run"))
    assert [row["figure"] for row in rows] == [
        *("load libraries", "score", "ablate", "ablate, with intervals", "read once"),
    ]
    assert all((row["rows"], row["settings"]) == (40, 21) for row in rows)


def test_gram_matrices_are_measured_beside_tiles(monkeypatch):
    layers = {"few": Layer((5, 20), (30, 20)), "many": Layer((3, 9, 9), (4, 3, 3, 3), 1, 1)}
    monkeypatch.setattr(products, "LAYERS", layers)
    (row,) = products.rows(2, torch.float32, "cpu", seconds=0)
    assert (row["layer"], row["p"], row["form"], row["taken"]) == ("few", 2.0, "gram", False)
    assert float(row["error"]) < 1e-6
    assert row["ratio"] > 0


def test_the_equation_is_the_score(monkeypatch):
    monkeypatch.setattr(closed_form, "EQUATION_BLOCK_BYTES", 3 * 5 * 4)
    x, logits = torch.randn(7, 4), torch.randn(7, 5)
    expected = last_layer_score(x, logits)
    torch.testing.assert_close(closed_form._equation(x, logits), expected)
    torch.testing.assert_close(closed_form._equation_in_blocks(x, logits), expected)
