"""What an extraction and an evaluation tell of images and labels, and when."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from torch import nn

from gradscore.cli import cli
from gradscore.errors import DataError
from gradscore.models.libraries import known_class_names
from gradscore.models.preprocessing import Preprocessing
from gradscore.recorded import extract
from gradscore.run import RunStore

GREY = Preprocessing(None, None, 0.5, 0.5, mode="L")


class Listener:
    """Keeps what it is told, in order."""

    def __init__(self):
        self.told = []

    def tell(self, sentence):
        self.told.append(sentence)

    def start(self, total, description):
        self.told.append(("start", total))

    def advance(self, n):
        pass

    def finish(self):
        pass


def make_model(preprocessing=GREY, classes=3):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).eval()
    model.preprocessing = preprocessing
    return model


def folder_of(root, *names, side=8):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (side, side), len(name)).save(path)
    return root


def told_of(model, sets, tmp_path, **how):
    """Return what is told before the first image."""
    listener = Listener()
    extract(model, sets, tmp_path / "run", layers="last", progress=listener, **how)
    started = next(k for k, told in enumerate(listener.told) if not isinstance(told, str))
    return listener.told[:started]


def test_labels_are_told_of_before_the_first_image(tmp_path):
    folder = folder_of(tmp_path / "a", "cat/1.png", "dog/2.png", "dog/3.png", "emu/4.png")
    (folder / "notes.txt").write_text("")
    (tmp_path / "b.csv").write_text("path,label\na/cat/1.png,2\na/dog/2.png,\na/dog/3.png,7\n")
    sets = {"a": ("id", folder), "o": ("ood", folder), "b": (None, tmp_path / "b.csv")}
    told = told_of(make_model(), sets, tmp_path)
    assert told == [
        "a: 4 images, 3 classes; sub-folders in sorted order are taken as classes: cat = 0 to "
        "emu = 2; passed over: 1 .txt.",
        "o: 4 images, none with a label; passed over: 1 .txt.",
        "b: 3 images, 2 classes, 1 without a label, 1 with labels beyond the model's 3.",
    ]


def test_a_limit_is_told_of(tmp_path):
    folder = folder_of(tmp_path / "a", *(f"{n}/{k}.png" for n in range(3) for k in range(4)))
    (told,) = told_of(make_model(), {"a": ("id", folder)}, tmp_path, limit=6)
    expected = "a: 6 images, 3 classes; 6 of 12 images, spread over 3 classes by a fixed seed."
    assert told == expected


def test_classes_that_an_id_set_lacks_are_told_of(tmp_path):
    folder = folder_of(tmp_path / "a", "0/1.png", "2/2.png")
    (tmp_path / "o.csv").write_text("path,label\na/0/1.png,1\na/2/2.png,0\n")
    model, sets = make_model(classes=5), {"a": ("id", folder), "o": ("ood", tmp_path / "o.csv")}
    told = told_of(model, sets, tmp_path)
    assert told[0].startswith("a: 2 images, 2 of the model's 5 classes; ")
    assert told[1:] == ["o: 2 images, 2 classes."]  # which need not be the model's


def test_labels_beyond_the_classes_are_counted(tmp_path):
    folder = folder_of(tmp_path / "a", "1/a.png", "2/a.png", "3/a.png", "3/b.png")
    expected = (
        r"Expected labels of 0 to 2 in set 'a', got 3 \(3/a.png\); 2 of 4 .* number the folders"
    )
    with pytest.raises(DataError, match=expected):
        extract(make_model(), {"a": ("id", folder)}, tmp_path / "run")


def test_the_models_own_class_names_are_used(tmp_path):
    model = make_model()
    model.class_names = ["emu", "dog", "cat"]
    folder = folder_of(tmp_path / "a", "cat/1.png", "dog/2.png")
    extract(model, {"a": ("id", folder)}, tmp_path / "run", layers="last")
    (block,) = RunStore(tmp_path / "run").blocks("a", fields=("path", "label"))
    assert block["label"].tolist() == [2, 1]


def test_imagenets_classes_have_names_and_identities():
    model = nn.Identity()
    assert known_class_names(model, 1000) is None
    model.spec = "timm:resnet18"
    names = known_class_names(model, 1000)
    assert (names["n01440764"], names["n15075141"], names["tench"]) == (0, 999, 0)
    assert known_class_names(model, 10) is None
    model.pretrained_cfg = {"label_names": ["emu", "dog"]}
    assert known_class_names(model, 2) == {"emu": 0, "dog": 1}
    model.class_names = ["crane", "dog", "crane"]
    assert known_class_names(model, 3) == {"dog": 1}


def test_images_that_grow_are_told_of(tmp_path):
    folder = folder_of(tmp_path / "a", "0/1.png", "1/2.png", side=4)
    model = make_model(Preprocessing(12, 8, 0.5, 0.5, mode="L"))
    told = told_of(model, {"a": ("id", folder)}, tmp_path)
    give = "give `preprocessing={'resize': 4, 'crop': 4}`."
    expected = f"a: images of 4 x 4 pixels are enlarged 3 times; .* {give}"
    assert re.fullmatch(expected, told[1])


def test_images_that_are_padded_are_told_of(tmp_path):
    folder = folder_of(tmp_path / "a", "0/1.png", side=4)
    model = make_model(Preprocessing(None, 8, 0.5, 0.5, mode="L"))
    told = told_of(model, {"a": ("ood", folder)}, tmp_path)
    expected = "a: images of 4 x 4 pixels are padded with black to the crop of 8 x 8"
    assert told[1].startswith(expected)


def test_each_id_set_has_its_own_accuracy(tmp_path):
    run, table = str(tmp_path / "run"), tmp_path / "e.json"
    (tmp_path / "none").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "none" / "1.png")
    sets = ["--id", "a=digits:test", "--id", f"b={tmp_path}/none", "--ood", "n=digits:noise"]
    how = ["--model", "digits", "--layers", "last", "--limit", "12", "-q", "--run", run]
    assert CliRunner().invoke(cli, ["extract", *sets, *how]).exit_code == 0
    done = CliRunner().invoke(cli, ["evaluate", "--run", run, "-q", "-o", str(table)])
    first, second = done.output.splitlines()[:2]
    assert re.fullmatch(r"ID accuracy on a: \d+\.\d% of 12 labelled images", first)
    assert second == "ID accuracy on b: unknown: no image has a label"
    shares = json.loads(table.read_text())["id_accuracy"]
    assert shares["b"] is None
    assert f"{shares['a']:.1%}" in first


def test_the_accuracy_says_of_how_many(tmp_path):
    images = np.zeros((4, 8, 8), np.uint8)
    np.savez(tmp_path / "s.npz", images=images, labels=[0, 1, -1, -1])
    sets = {"a": ("id", tmp_path / "s.npz"), "o": ("ood", tmp_path / "s.npz")}
    extract(make_model(), sets, tmp_path / "run", layers="last")
    done = CliRunner().invoke(cli, ["evaluate", "--run", str(tmp_path / "run")])
    expected = r"(?m)^ID accuracy: \d+\.0% of 2 labelled images \(4 in all\)\n"
    assert re.search(expected, done.output)


def test_a_larger_limit_extends_a_run(tmp_path):
    folder = folder_of(tmp_path / "a", *(f"{n}/{k}.png" for n in range(3) for k in range(6)))
    sets = {"a": ("id", folder)}
    how = {"layers": "last", "batch_size": 4}
    model = make_model()
    extract(model, sets, tmp_path / "run", limit=6, **how)
    listener = Listener()
    extract(model, sets, tmp_path / "run", limit=11, progress=listener, **how)
    assert listener.told[-1] == ("start", 5)
    extract(model, sets, tmp_path / "whole", limit=11, **how)
    (grown, logits), (whole, expected) = (
        [
            np.concatenate([block[key] for block in RunStore(tmp_path / name).blocks("a")])
            for key in ("path", "logits")
        ]
        for name in ("run", "whole")
    )
    assert grown.tolist() == whole.tolist()
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    (folder / "0" / "new.png").write_bytes((folder / "0" / "1.png").read_bytes())
    with pytest.raises(DataError, match=r"^The images of set a have changed since they were reco"):
        extract(model, sets, tmp_path / "run", limit=15, **how)


def test_a_skipped_image_is_named_once(tmp_path):
    folder = folder_of(tmp_path / "a", "1.png", "2.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:40])
    how = ["--model", "digits", "--layers", "last", "--run", str(tmp_path / "run")]
    done = CliRunner().invoke(cli, ["extract", "--ood", f"a={folder}", "--on-error", "skip", *how])
    (line,) = [line for line in done.stderr.splitlines() if "2.png" in line]
    assert line.count("2.png") == 1
