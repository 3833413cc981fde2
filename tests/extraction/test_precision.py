"""float32 is float32: TF32 is a precision of its own, and settings are put back."""

import json
from contextlib import suppress

import pytest
import torch

from gradscore.errors import ModelError, RunError
from gradscore.extraction import classifier
from gradscore.extraction.classifier import Classifier, float32_products
from gradscore.models.preprocessing import Preprocessing
from gradscore.recorded import extract

BACKENDS = torch.backends
ON_CUDA = (BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn)
ON_CPU = (BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn)
DISAGREE = "the newer names disagree"


def now():
    """Return what torch's settings are, by the newer names and, where they answer, the older."""
    older = []
    for ask in (
        torch.get_float32_matmul_precision,
        lambda: BACKENDS.cudnn.allow_tf32,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
    ):
        try:
            older.append(ask())
        except RuntimeError:
            older.append(DISAGREE)
    return older, [part.fp32_precision for part in (*ON_CUDA, *ON_CPU)]


@pytest.fixture(autouse=True)
def _default():
    """Put the settings back to torch's own, whatever a test has done."""
    yield
    torch.set_float32_matmul_precision("highest")
    for part in (*ON_CUDA, *ON_CPU):
        part.fp32_precision = "none"
    BACKENDS.fp32_precision = "none"
    BACKENDS.cudnn.allow_tf32 = True


USERS = {
    "default": lambda: None,
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "no cudnn": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "newer names": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "all tf32": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("precision", ["float32", "tf32", "float16"])
def test_products_are_of_the_precision_asked_for_and_settings_are_put_back(user, precision):
    USERS[user]()
    older, newer = now()
    with suppress(KeyboardInterrupt), float32_products(precision):
        inside = now()
        raise KeyboardInterrupt
    on_cuda = "tf32" if precision == "tf32" else "ieee"
    assert inside[1] == [on_cuda] * 3 + ["ieee"] * 3
    assert inside[0][1:] == [precision == "tf32"] * 2
    found = now()
    assert found[1] == newer
    answered = [(a, b) for a, b in zip(older, found[0], strict=True) if a != DISAGREE]
    assert all(a == b for a, b in answered)


def make_model(seen):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    model.register_forward_pre_hook(lambda *_: seen.append(now()[1]))
    model.preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="L")
    return model


HOW = {"sets": {"digits": ("ood", "digits:noise")}, "limit": 4, "batch_size": 2}


def test_an_extraction_computes_its_batches_in_float32(tmp_path):
    seen = []
    extract(make_model(seen), run=tmp_path, **HOW)
    assert seen[-1] == ["ieee"] * 6
    assert now()[1][1] == "tf32"


def test_tf32_is_for_cuda_and_recorded(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="a CUDA device for precision tf32, got a CPU"):
        extract(make_model([]), run=tmp_path, precision="tf32", **HOW)
    seen = []
    monkeypatch.setattr(
        "gradscore.extraction.resolved.device_for", lambda device, precision: torch.device("cpu")
    )
    extract(make_model(seen), run=tmp_path, precision="tf32", **HOW)
    assert seen[-1] == ["tf32"] * 3 + ["ieee"] * 3
    assert json.loads((tmp_path / "run.json").read_text())["precision"] == "tf32"
    with pytest.raises(RunError, match="has precision 'tf32', got 'float32'"):
        extract(make_model([]), run=tmp_path, **HOW)
    later = {**HOW, "layers": "all", "p": 2}
    assert len(extract(make_model([]), run=tmp_path, precision="tf32", **later).store.info.passes)


@pytest.mark.parametrize(
    ("there", "device", "found"),
    [(True, "auto", "cuda"), (True, "cpu", "cpu"), (False, "auto", "cpu"), (False, "cuda", None)],
)
def test_a_device_is_found_or_missed(there, device, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    if found is None:
        with pytest.raises(ModelError, match="a CUDA device, found none"):
            classifier.device_for(device, "float32")
    else:
        assert classifier.device_for(device, "float32").type == found
    if there:
        assert classifier.device_for("cuda", "tf32").type == "cuda"


def test_tf32_needs_no_autocast():
    model = torch.nn.Linear(2, 2)
    with Classifier(model, None, torch.device("cpu"), "tf32").autocast():
        assert not torch.is_autocast_enabled("cpu")
