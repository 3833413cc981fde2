"""A detector of a score of one's own: it decides by the function that was calibrated, or not."""

import numpy as np
import pytest
import torch

import gradscore as gs
from gradscore.detector import Detector
from gradscore.errors import DetectorError
from gradscore.methods import METHODS
from gradscore.methods.custom import register_method


@pytest.fixture
def calibrated(tmp_path):
    """Return how to calibrate a function under one name, and the file."""
    model, images = gs.create_model("digits"), torch.rand(130, 1, 8, 8)
    path = tmp_path / "d.safetensors"

    def make(score):
        METHODS.pop("own", None)
        register_method("own", score)
        detector = Detector.calibrate(model, images, method="own")
        detector.save(path)
        return detector

    yield make, path
    METHODS.pop("own", None)


def replaced(score):
    del METHODS["own"]
    register_method("own", score)


def test_the_same_function_is_taken(calibrated):
    make, path = calibrated
    info = make(lambda features, logits, head: logits.amax(dim=1)).info
    replaced(lambda features, logits, head: logits.amax(dim=1))
    assert Detector.load(path).info == info
    assert len(info.own) == 64


def test_another_function_of_its_name_is_one_line(calibrated):
    make, path = calibrated
    make(lambda features, logits, head: logits.amax(dim=1))
    replaced(lambda features, logits, head: 2 * logits.amax(dim=1))
    with pytest.raises(DetectorError, match=r"'own' is not the function that was calibrated.*aga"):
        Detector.load(path)


def test_a_function_that_cannot_be_compared_is_told_of(calibrated):
    make, path = calibrated
    made = make(
        lambda features, logits, head: torch.from_numpy(
            np.load("x") if 0 else +logits[:, 0].numpy()
        )
    )
    assert made.info.own == ""
    assert [
        text for text in made.info.notices if "is still this function will not be seen" in text
    ]
    assert Detector.load(path).info == made.info


def test_scores_of_gradscore_have_no_digest(calibrated):
    detector = Detector.calibrate(gs.create_model("digits"), torch.rand(130, 1, 8, 8))
    assert detector.info.own is None
