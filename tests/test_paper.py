"""The script that redoes the paper's tables: its figures, what it misses, and its whole way."""

import csv
import importlib.util
import os
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


paper = load("paper")


@pytest.mark.parametrize("key", paper.FIGURES, ids=lambda key: f"{key[0]} {key[1]}")
def test_the_papers_means_are_those_of_its_sets(key):
    for line in paper.FIGURES[key].values():
        pairs = line.split()
        assert len(pairs) == len(paper.OODS)
        if pairs[0] != "-":
            *sets, mean = [tuple(map(float, pair.split("/"))) for pair in pairs]
            for k in range(2):
                assert sum(pair[k] for pair in sets) / 4 == pytest.approx(mean[k], abs=0.0101)


def test_rows_stand_beside_the_papers():
    subject = paper.Subject(paper.R101X1, "other", Path("w"), "", {})
    rows = [{"method": "msp", "ood": ood, "fpr95": 0.5, "auroc": 0.8} for ood in ("sun", "mars")]
    sun, mars = paper.beside_the_paper("table1", subject, rows, "method")
    assert (sun["paper_fpr95"], sun["paper_auroc"]) == (79.98, 78.34)
    assert (sun["fpr95_difference"], sun["auroc_difference"]) == (-29.98, 1.66)
    assert mars["paper_fpr95"] is mars["fpr95_difference"] is None


def test_without_the_data_every_missing_piece_is_named(tmp_path, capsys):
    assert paper.main(["--data", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    text = capsys.readouterr().err
    for piece in ("imagenet", "inaturalist", "sun", "places", "textures"):
        assert f"missing: set {piece}: " in text
    for piece in ("BiT-S-R101x1-flat-finetune.pth.tar", "BiT-S-R152x2.npz", "densenet121"):
        assert f"{piece}" in text
    assert text.count("Get it: ") >= 11


@pytest.mark.slow
def test_every_table_is_made_from_what_stands_in(tmp_path, monkeypatch):
    if "GRADSCORE_DATA" not in os.environ:
        pytest.skip("GRADSCORE_DATA is not set")
    arguments = ["--stand-in", "--limit", "8", "-o", str(tmp_path)]
    assert paper.main(arguments) == 0
    names = [
        f"{table}.{ending}"
        for table in ("table1", "table2", "table3", "table5")
        for ending in ("csv", "md")
    ]
    names += [f"{sweep}.{ending}" for sweep in paper.SWEEPS for ending in ("csv", "png")]
    first = {name: (tmp_path / name).read_bytes() for name in names}
    with (tmp_path / "table1.csv").open() as file:
        methods = {row["method"] for row in csv.DictReader(file)}
    assert methods == {"msp", "odin", "energy", "mahalanobis", "gradnorm"}
    assert paper.main(arguments) == 0
    assert first == {name: (tmp_path / name).read_bytes() for name in names}


def test_the_toy_landscape_is_higher_on_the_classes_than_far_between(tmp_path):
    pytest.importorskip("matplotlib")
    landscape = load("landscape")
    score, accuracy = landscape.trained_score(steps=200)
    assert accuracy > 0.95
    assert score(landscape.CENTRES).min() > 1.5 * score(landscape.CENTRES.mean(0, keepdim=True))
    landscape.main(["--steps", "20", "--side", "21", "-o", str(tmp_path / "landscape.png")])
    assert (tmp_path / "landscape.png").read_bytes().startswith(b"\x89PNG")
