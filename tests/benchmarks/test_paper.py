"""The script that redoes the paper's tables: its figures, what it misses, and its whole way."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import landscape
import paper
import paper_subjects
import paper_tables
import pytest
from PIL import Image
from safetensors.torch import save_file

from gradscore.models import create_model

FIGURES = paper_tables.paper_figures()
ROWS = sorted({key[:3] for key in FIGURES if key[0] != "text"})
SETS = ("inaturalist", "sun", "places", "textures")


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_the_papers_means_are_those_of_its_sets(row):
    sets = [FIGURES[(*row, ood)] for ood in SETS if (*row, ood) in FIGURES]
    assert len(sets) == (0 if row[0] in ("table2", "table4") else 4)
    for of_sets, mean in zip(zip(*sets, strict=True), FIGURES[(*row, "mean")], strict=False):
        assert sum(of_sets) / 4 == pytest.approx(mean, abs=0.0101)


def subject(**fields):
    given = {
        "name": paper_subjects.BIT,
        "model": "other",
        "weights": Path("w"),
        "tables": (),
        "sets": {},
    }
    return paper_subjects.Subject(**given | fields)


def test_rows_stand_beside_the_papers():
    rows = [{"method": "msp", "ood": ood, "fpr95": 0.5, "auroc": 0.8} for ood in ("sun", "mars")]
    sun, mars = paper_tables.beside_the_paper("table1", subject(), rows)
    assert (sun["paper_fpr95"], sun["paper_auroc"]) == (79.98, 78.34)
    assert (sun["fpr95_difference"], sun["auroc_difference"]) == (-29.98, 1.66)
    assert mars["paper_fpr95"] is mars["fpr95_difference"] is None


def test_gaps_of_the_text_are_of_the_worse_minus_the_better():
    def rows_of(key, worse, better):
        figures = {"sun": (0.9, 0.4), "moon": (0.7, 0.6), "mean": (0.8, 0.5)}
        return [
            {key: setting, "ood": ood, "fpr95": pair[place]}
            for place, setting in enumerate((worse, better))
            for ood, pair in figures.items()
        ]

    found = {
        "target": rows_of("target", "one-hot", "uniform"),
        "p": rows_of("p", 2.0, 1.0),
        "method": rows_of("method", "lee_alregib", "gradnorm"),
    }
    rows = paper_tables.text_figures(subject(), found)
    assert [(row["ood"], row["points"]) for row in rows[:4]] == [
        ("sun", 50.0),
        ("moon", 10.0),
        ("mean", 30.0),
        ("largest", 50.0),
    ]
    known = [(row["ood"], row["paper_points"]) for row in rows if row["paper_points"]]
    assert known == [("sun", 48.35), ("largest", 22.31), ("mean", 15.45)]
    assert [row["difference"] for row in rows if row["paper_points"]] == [1.65, 27.69, 14.55]
    found["method"] = [row for row in found["method"] if row["method"] == "gradnorm"]
    assert paper_tables.text_figures(subject(), found) == rows[:8]


def test_without_the_data_every_missing_piece_is_named(tmp_path, capsys):
    assert paper.main(["--data", str(tmp_path), "-o", str(tmp_path / "out")]) == 1
    lines = capsys.readouterr().err.splitlines()
    for name in ("imagenet", *SETS):
        assert any(
            f"missing: set {name}: no image" in x and "; get it from http" in x for x in lines
        )
    for file in ("BiT-S-R101x1-flat-finetune.pth.tar", "BiT-S-R152x2.npz", "densenet121"):
        assert any("missing: weights: " in line and file in line for line in lines)
    assert any("mahalanobis_stages, lee_alregib: no labelled ID images" in line for line in lines)
    assert len(lines) == 5 + 7 + 1


@pytest.fixture
def declared(tmp_path, monkeypatch):
    """Declare the paper's sets with three pictures each, and make them."""
    entries = json.loads(paper_subjects.DECLARATION.read_text())["sets"]
    for entry in entries:
        for picture in range(3):
            path = tmp_path / "data" / entry["files"].replace("*", str(picture))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (80 * picture, len(entry["name"]), 0)).save(path)
        entry.update(count=3, folders=None)
    file = tmp_path / "small.json"
    file.write_text(json.dumps({"sets": entries}))
    monkeypatch.setattr(paper_subjects, "DECLARATION", file)
    return tmp_path / "data"


def of_small_pictures(data, sets):
    """Return the paper's models with pictures of 32 pixels: DenseNet-121 takes any."""
    size = {"resize": 32, "crop": 32}
    return [replace(one, preprocessing=size) for one in paper_subjects.paper_subjects(data, sets)]


def test_with_the_data_the_models_whose_weights_are_there_run(
    declared, tmp_path, capsys, monkeypatch
):
    data = ["--data", str(declared), "-o", str(tmp_path / "out")]
    assert paper.main(data) == 1
    monkeypatch.setattr(paper, "paper_subjects", of_small_pictures)
    weights = declared / "checkpoints" / "densenet121.safetensors"
    weights.parent.mkdir()
    save_file(create_model(paper_subjects.DENSENET, "random").state_dict(), weights)
    capsys.readouterr()
    train = f"{tmp_path / 'out' / 'lists' / 'imagenet.csv'}@{declared}"
    assert paper.main([*data, "--train", train]) == 0
    missing = capsys.readouterr().err
    assert missing.count("missing: weights: ") == 6
    assert "set " not in missing
    with (tmp_path / "out" / "table3.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["ood"] for row in rows[:5]] == ["inaturalist", "sun", "places", "textures", "mean"]
    assert all(row["paper_fpr95"] for row in rows)
    methods = [method for method in paper_tables.COMPARED if method != "lee_alregib"]
    assert list(dict.fromkeys(row["method"] for row in rows)) == methods


def stand_in(tmp_path, *more):
    if "GRADSCORE_DATA" not in os.environ:
        pytest.skip("GRADSCORE_DATA is not set")
    return paper.main(["--stand-in", "--limit", "8", "-o", str(tmp_path), *more])


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def small_pictures():
    """Let what stands in see pictures of 64 pixels: what the tables hold is no matter here."""
    with pytest.MonkeyPatch.context() as patch:
        size = paper_subjects.CENTRAL | {"resize": 72, "crop": 64}
        patch.setattr(paper_subjects, "CENTRAL", size)
        yield


@pytest.fixture(scope="module")
def complete(small_pictures, tmp_path_factory):
    """A folder in which the whole script ran once, from what stands in."""
    folder = tmp_path_factory.mktemp("complete")
    assert stand_in(folder) == 0
    return folder


@pytest.mark.slow
def test_every_table_is_made_from_what_stands_in(complete, capsys):
    first = written(complete)
    assert stand_in(complete) == 0
    assert first == written(complete)
    missing = [line for line in capsys.readouterr().err.splitlines() if "missing: " in line]
    assert len(missing) == 1
    assert "mobilenetv2_100" in missing[0]
    assert "mahalanobis_stages: no labelled ID images" in missing[0]
    tables = [*(f"table{number}" for number in range(1, 6)), "models", "text"]
    names = [f"{table}.{ending}" for table in tables for ending in ("csv", "md")]
    names += [f"{kind}.{ending}" for kind in paper_tables.ABLATIONS for ending in ("csv", "png")]
    names += [f"{kind}-scores.png" for kind in ("decomposition", "kl", "target")]
    assert sorted(first) == sorted(names)
    with (complete / "table1.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file)} == {*paper_tables.COMPARED}


@pytest.mark.slow
def test_what_was_interrupted_goes_on_to_the_same_tables(complete, tmp_path, monkeypatch):
    extract, shards = paper.extract, {}
    for place in (2, 3):  # before the noise, before the second model
        started = []

        def interrupted(model, *rest, started=started, place=place, **how):
            started.append(model)
            if len(started) == place:
                raise KeyboardInterrupt
            return extract(model, *rest, **how)

        with monkeypatch.context() as patch:
            patch.setattr(paper, "extract", interrupted)
            with pytest.raises(KeyboardInterrupt):
                stand_in(tmp_path)
        before, shards = shards, recorded(tmp_path)
        assert before.items() < shards.items()
    assert stand_in(tmp_path) == 0
    assert shards.items() < recorded(tmp_path).items()
    assert written(tmp_path) == written(complete)


def recorded(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("shard-*.h5")}


def test_the_toy_landscape_is_higher_on_the_classes_than_far_between(tmp_path):
    score, accuracy = landscape.trained_score(steps=200)
    assert accuracy > 0.95
    assert score(landscape.CENTRES).min() > 1.5 * score(landscape.CENTRES.mean(0, keepdim=True))
    landscape.main(["--steps", "20", "--side", "21", "-o", str(tmp_path / "landscape.png")])
    assert (tmp_path / "landscape.png").read_bytes().startswith(b"\x89PNG")
