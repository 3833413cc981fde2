"""The script that compares every score on real images: on digits, in both of its ways."""

import csv

import choosing
import pytest
from safetensors.torch import save_file

from gradscore.data import open_set
from gradscore.data.manifest import Manifest, write_manifest
from gradscore.models import create_model

SETS = {"test": ("digits:test", 80), "train": ("digits:train", 60), "noise": ("digits:noise", 40)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_file(create_model("digits").state_dict(), folder / "digits.safetensors")
    for name, (source, count) in SETS.items():
        images = open_set(source, limit=count)
        (folder / name).mkdir()
        for place in range(count):
            images[place].save(folder / name / f"{place}.png")
        paths = [f"{place}.png" for place in range(count)]
        write_manifest(
            folder / name / "manifest.csv", Manifest(folder / name, paths, images.labels)
        )
    return folder


@pytest.mark.parametrize("fit", ["train", None], ids=["fitted apart", "halves"])
def test_every_score_is_compared_best_first(data, fit, tmp_path, monkeypatch, capsys):
    subject = choosing.Subject("digits", "digits.safetensors", "test", {"noise": "noise"}, fit)
    monkeypatch.setitem(choosing.SUBJECTS, "digits", subject)
    monkeypatch.setattr(choosing, "SEEDS", range(1))
    output = tmp_path / "table.csv"
    choosing.main(["--data", str(data), "--model", "digits", "-o", str(output)])
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == choosing.COLUMNS
    figures = [float(row["auroc"]) for row in rows]
    assert figures == sorted(figures, reverse=True)
    assert [row["chosen"] for row in rows].count("yes") == 1
    by_method = {row["method"]: row for row in rows if not row["options"]}
    assert {"knn", "vim", "laplace_energy_blocks"} < by_method.keys()
    for method in ("msp", "energy", "knn", "react"):  # where theirs is the same formula
        row = by_method[method]
        assert float(row["pytorch_ood_auroc"]) == pytest.approx(float(row["auroc"]), abs=0.5)
    shown = capsys.readouterr().out
    assert "far: Spearman with the real ranking" in shown
    assert "recommended: " in shown


def test_a_half_reads_its_own_rows_of_a_run(data, tmp_path):
    run = choosing.gs.extract(
        "digits", {"id": ("id", "digits:test")}, tmp_path / "run", layers="last", limit=50
    ).store
    first, second = (choosing.Half(run, 0, side) for side in (0, 1))
    rows = {
        (half, name): [
            k for part in run_half.blocks(name, ("index",), rows=7) for k in part["index"].tolist()
        ]
        for half, run_half in (("first", first), ("second", second))
        for name in ("id", "half")
    }
    assert rows["first", "id"] == rows["second", "half"]
    assert sorted(rows["first", "id"] + rows["first", "half"]) == list(range(50))
    assert len(rows["first", "id"]) == 25
