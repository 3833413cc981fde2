"""An ID accuracy that guessing would reach is told of: something does not belong to the model."""

import numpy as np
import pytest
from helpers.commands import call
from helpers.recorded_run import make_run

from gradscore.accuracy import Accuracy, chance_accuracies
from gradscore.data import open_set
from gradscore.run import RunStore

CAUSE = "the weights, the labels' numbering or the preprocessing do not belong to this model."
OF_FACTORY = (
    "the model is probably untrained, as its weights are those that its factory gives; or the "
    "labels' numbering or the preprocessing do not belong to it."
)


@pytest.mark.parametrize(
    ("right", "labelled", "classes", "chance"),
    [
        (98, 1000, 10, True),
        (0, 1000, 10, True),
        (123, 1000, 10, True),  # P(X >= 123) = 1.1%
        (124, 1000, 10, False),  # 0.8%
        (29, 29, 10, False),
        (0, 29, 10, True),
        (1, 10, 10, True),  # a model that is right half the time gives no more with 1.1%
        (2, 10, 10, False),  # 5.5%
        (0, 5, 10, True),  # 3.1%
        (0, 4, 10, False),  # 6.3%
        (1, 1, 10, False),
        (0, 0, 10, False),
        (0, 30, 10, True),
        (15, 30, 2, True),
        (1, 30, 1000, True),
        (2, 30, 1000, False),
        (0, 50, 1, False),
    ],
)
def test_chance_is_what_guessing_reaches(right, labelled, classes, chance):
    assert Accuracy(right, labelled, labelled).is_chance(classes) is chance


def shifted(by):
    def change(name, arrays):
        if name == "digits":
            known = arrays["label"] >= 0
            arrays["label"][known] = (arrays["label"][known] + by) % 5

    return change


@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_labels_of_another_numbering_are_told_of(tmp_path, capsys, command):
    path = make_run(tmp_path / "run", change=shifted(1))
    assert call(command, "--run", path, "--method", "msp") == 0
    told = capsys.readouterr().err
    images = "38 labelled images (40 in all)"
    expected = f"digits: ID accuracy 0.0% of {images} is chance for 5 classes: {OF_FACTORY}"
    assert expected in told.splitlines()
    assert call(command, "--run", path, "--method", "msp", "-q") == 0
    assert "chance" not in capsys.readouterr().err


def test_a_set_that_fits_is_left_when_that_is_sure(tmp_path, monkeypatch):
    store = RunStore(make_run(tmp_path / "run"))
    blocks, read = store.blocks, []

    def counted(*args, **how):
        for block in blocks(*args, **how):
            read.append(len(block["label"]))
            yield block

    monkeypatch.setattr(store, "blocks", counted)
    assert chance_accuracies(store, ["digits", "noise", "train"]) == {}
    assert sum(read) < 40


def test_extraction_tells_at_its_end(tmp_path, capsys):
    images = open_set("digits:test")
    pictures = np.stack([np.asarray(images[k]) for k in range(60)])
    np.savez(tmp_path / "s.npz", images=pictures, labels=(images.labels[:60] + 1) % 6)
    sets = ["--id", f"s={tmp_path}/s.npz", "--id", "d=digits:test", "--layers", "last"]
    assert call("extract", "--run", tmp_path / "r", "--model", "digits", *sets) == 0
    *_, told, recorded = capsys.readouterr().err.splitlines()
    assert told.startswith("s: ID accuracy ")
    assert told.endswith(f"of 60 labelled images is chance for 6 classes: {CAUSE}")
    assert "recorded." in recorded


def test_random_weights_are_named_as_the_cause(tmp_path, capsys):
    sets = ["--id", "d=digits:test", "--layers", "last", "--limit", "60"]
    how = ["--model", "digits", "--weights", "random"]
    assert call("extract", "--run", tmp_path / "r", *how, *sets) == 0
    assert "chance for 6 classes: the weights are random." in capsys.readouterr().err
