"""A detector in ONNX: the same decisions by onnxruntime alone; what cannot be exported is told."""

import json

import numpy as np
import pytest
import torch
from helpers.commands import call, fails
from torch import nn

import gradscore as gs
from gradscore.detector import Detector
from gradscore.errors import DetectorError, InvalidArgument, ModelError
from gradscore.methods import METHODS

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("known_operators")

SCORES = {
    "gradnorm": {},
    "gradnorm of order 2, one-hot": {"p": 2.0, "target": "one-hot"},
    "gradnorm of order inf, T 1000": {"p": float("inf"), "temperature": 1000.0},
    "energy": {},
    "react": {},
    "ash": {},
    "scale": {},
    "gen": {},
    "knn": {},
    "nnguide": {},
    "fdbd": {},
    "vim": {},
    "mahalanobis": {},
    "laplace_energy clipped": {"clip": 95.0},
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 5)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", SCORES)
def test_every_score_of_one_forward_decides_as_it_does_in_torch(model, images, name, tmp_path):
    with torch.no_grad():
        labelled = [(images, model(images).argmax(dim=1).where(torch.arange(200) > 9, 0))]
    detector = Detector.calibrate(model, labelled, method=name.split()[0], **SCORES[name])
    found = detector.export(tmp_path / "gate.onnx", images[:70])
    assert found.images == 70
    assert not found.drawn
    assert max(found.logits, found.score) < 1e-5
    run = session(tmp_path / "gate.onnx")
    for size in (1, 7, 64):
        expected = detector(images[:size])
        logits, score, accepted = run.run(None, {"images": images[:size].numpy()})
        np.testing.assert_allclose(logits, expected.logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(score, expected.score, rtol=1e-4, atol=1e-5)
        sure = abs(score - detector.info.threshold.value) > 1e-4
        assert (accepted == expected.accepted.numpy())[sure].all()


def test_pixels_are_normalised_inside(model, images, tmp_path):
    how = {"resize": None, "crop": None, "mean": 0.3, "std": 0.38, "mode": "L"}
    detector = Detector.calibrate(model, images, preprocessing=how)
    pixels = torch.randint(0, 256, (9, 8, 8, 1), dtype=torch.uint8)
    detector.export(tmp_path / "gate.onnx", pixels, takes="uint8")
    prepared = ((pixels.float() / 255 - 0.3) / 0.38).permute(0, 3, 1, 2)
    logits, score, _ = session(tmp_path / "gate.onnx").run(None, {"images": pixels.numpy()})
    np.testing.assert_allclose(score, detector(prepared).score, rtol=1e-5)
    np.testing.assert_allclose(logits, detector(prepared).logits, rtol=1e-4, atol=1e-5)


def test_the_file_says_what_it_is_and_its_threshold_can_be_changed(model, images, tmp_path):
    detector = Detector.calibrate(model, images)
    detector.export(tmp_path / "gate.onnx")
    content = onnx.load(tmp_path / "gate.onnx")
    told = {entry.key: entry.value for entry in content.metadata_props}
    assert json.loads(told["gradscore"])["method"] == "energy"
    assert told["gradscore.promise"] == detector.info.threshold.promise()
    assert json.loads(told["gradscore.agreement"])["drawn"] is True
    (threshold,) = (x for x in content.graph.initializer if x.name == "threshold")
    assert onnx.numpy_helper.to_array(threshold) == detector.info.threshold.value
    threshold.CopyFrom(onnx.numpy_helper.from_array(np.array(1e9), "threshold"))
    onnx.save(content, tmp_path / "strict.onnx")
    *_, accepted = session(tmp_path / "strict.onnx").run(None, {"images": images[:5].numpy()})
    assert not accepted.any()


def test_block_means_go_along_without_channels_that_never_vary(images, tmp_path):
    model = gs.create_model("digits")
    with torch.no_grad():
        model.block4.bn2.weight[:4], model.block4.bn2.bias[:4] = 0, -99
    detector = Detector.calibrate(model, images, method="laplace_energy_blocks")
    assert (detector.arrays["fit.fold0.block4.deviation"] == 0).sum() >= 4
    found = detector.export(tmp_path / "gate.onnx", images[:20])
    assert max(found.logits, found.score) < 1e-4


class Dict(nn.Module):
    """Returns its logits as HuggingFace's models do."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, x):
        return {"logits": self.inner(x)}


def test_outputs_with_logits_and_files_of_one_size(model, images, tmp_path):
    detector = Detector.calibrate(Dict(model), images, method="gradnorm")
    assert detector.export(tmp_path / "three.onnx", images, batch=3).score < 1e-4
    with pytest.raises(Exception, match="invalid dimensions"):
        session(tmp_path / "three.onnx").run(None, {"images": images[:2].numpy()})


class Frozen(nn.Module):
    """Asks for its batch size in a way that a graph cannot follow."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        return self.fc(x.reshape(len(x), -1))


def test_a_model_that_freezes_the_batch_is_refused_or_exported_for_one_size(tmp_path):
    x = torch.rand(100, 3, 2, 2)
    detector = Detector.calibrate(Frozen().eval(), x)
    path = tmp_path / "gate.onnx"
    with pytest.raises(DetectorError, match=r"freezes the batch|export for one size"):
        detector.export(path, x)
    assert not path.exists()
    detector.export(path, x, batch=5)
    assert path.exists()


OWN = """
import torch

def distance(features, logits, head, mean):
    return -(features - mean).square().sum(dim=1) + head(features).logsumexp(dim=1)

distance.fit = lambda features, logits, head: features.mean(dim=0)

def arrays(features, logits, head):
    return logits.numpy().max(axis=1)

def branch(features, logits, head):
    return logits.amax(dim=1) if logits.sum() > 0 else logits.amin(dim=1)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_graph.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "python:own_graph:"
    for name in [name for name in METHODS if name.startswith("python:own_graph:")]:
        del METHODS[name]


def test_a_score_of_ones_own_is_exported_where_it_is_made_of_torch(model, images, own, tmp_path):
    detector = Detector.calibrate(model, images, method=f"{own}distance")
    found = detector.export(tmp_path / "gate.onnx", images[:70])
    assert max(found.logits, found.score) < 1e-5
    _, score, _ = session(tmp_path / "gate.onnx").run(None, {"images": images[:9].numpy()})
    np.testing.assert_allclose(score, detector(images[:9]).score, rtol=1e-4)
    for name, hint in {"arrays": "operations of torch only", "branch": "use torch.where"}.items():
        detector = Detector.calibrate(model, images, method=f"{own}{name}")
        with pytest.raises(DetectorError, match=hint):
            detector.export(tmp_path / "other.onnx", images)


def test_export_imports_a_score_of_ones_own_only_where_it_is_named_again(own, tmp_path, capsys):
    model = gs.create_model("digits")
    made = Detector.calibrate(model, torch.rand(130, 1, 8, 8), method=f"{own}distance")
    path, gate = tmp_path / "d.safetensors", tmp_path / "gate.onnx"
    made.save(path)
    del METHODS[f"{own}distance"]
    words = ("export", "--detector", path, "--data", "digits:test", "-o", gate)
    told = fails(capsys, *words)
    assert f"add --method {own}distance if you trust it" in told
    told = fails(capsys, *words, "--method", f"{own}arrays")
    assert f"Expected the score of the detector {str(path)!r}, '{own}distance', got" in told
    assert call(*words, "--method", f"{own}distance") in (0, None)
    assert gate.exists()


def refusals(model, images, path):
    energy = Detector.calibrate(model, images)
    inner = Detector.calibrate(model, images, method="gradnorm", layers="1.weight")
    return {
        "inner layers": (lambda: inner.export(path), "got gradnorm of layers 1.weight"),
        "ending": (lambda: energy.export("gate.pt"), r"ending in .onnx, got 'gate.pt'"),
        "input": (lambda: energy.export(path, takes="jpeg"), "normalized or uint8, got 'jpeg'"),
        "batch": (lambda: energy.export(path, batch=0), "1 or more, got 0"),
        "shape": (
            lambda: energy.export(path, images[:, :, 1:]),
            r"torch.float32 \[n, 1, 8, 8\] .* got torch.float32 \[200, 1, 7, 8\]",
        ),
        "pixels": (
            lambda: energy.export(path, images, takes="uint8"),
            r"torch.uint8 \[n, 8, 8, 1\] for an input of uint8, got torch.float32",
        ),
        "no image": (lambda: energy.export(path, images[:0]), r"got torch.float32 \[0, 1, 8, 8\]"),
        "a list": (lambda: energy.export(path, [1]), "got a list"),
    }


@pytest.mark.parametrize(
    "case", ["inner layers", "ending", "input", "batch", "shape", "pixels", "no image", "a list"]
)
def test_what_cannot_be_exported_is_one_line(model, images, tmp_path, case):
    act, message = refusals(model, images, tmp_path / "gate.onnx")[case]
    with pytest.raises((DetectorError, InvalidArgument), match=message):
        act()
    assert not (tmp_path / "gate.onnx").exists()


@pytest.mark.parametrize("dropout", [True, False])
def test_a_model_is_exported_in_its_mode_or_refused(images, tmp_path, dropout):
    layers = (nn.Flatten(), nn.Dropout() if dropout else nn.Identity(), nn.Linear(64, 5))
    model = nn.Sequential(*layers).eval()
    detector = Detector.calibrate(model, images)
    model.train()
    if dropout:
        with pytest.raises(ModelError, match="train mode"):
            detector.export(tmp_path / "gate.onnx", images)
    else:
        detector.export(tmp_path / "gate.onnx", images)
    assert all(part.training for part in model.modules())
    assert (tmp_path / "gate.onnx").exists() != dropout


def test_a_file_that_scores_otherwise_than_the_detector_is_not_kept(
    model, images, tmp_path, monkeypatch
):
    from gradscore.detector.graph import DetectorGraph

    right = DetectorGraph.forward

    def wrong(self, images):
        logits, score, accepted = right(self, images)
        return logits, score * 1.001, accepted

    detector = Detector.calibrate(model, images)
    monkeypatch.setattr(DetectorGraph, "forward", wrong)
    with pytest.raises(DetectorError, match="the file is not kept"):
        detector.export(tmp_path / "gate.onnx", images)
    assert list(tmp_path.iterdir()) == []
