"""Kept activations answer questions of the tail as the whole network would."""

import numpy as np
import pytest
import torch
from torch import nn

from gradscore.engine import gradient_norms
from gradscore.errors import InvalidArgument, ModelError, NotRecorded, RunError
from gradscore.extraction.replay import Replay
from gradscore.models.preprocessing import Preprocessing
from gradscore.objective import Objective
from gradscore.recorded import extract
from gradscore.run import RunStore, check

DIGITS = {"digits": ("id", "digits:test")}
SMALL = {"limit": 10, "batch_size": 4, "layers": "last"}


class Residual(nn.Module):
    """A network in which ``body`` can be kept, and ``inner`` cannot: a shortcut passes it."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU())
        self.inner = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(144, 6)
        self.preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="L")
        self.eval()

    def forward(self, x):
        x = self.body(self.stem(x))
        return self.fc((x + self.inner(x)).flatten(1))


def images_of(model):
    from gradscore.data import open_set

    images = open_set("digits:test", limit=10)
    return torch.stack([model.preprocessing(image) for image in images])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-2)])
def test_the_tail_answers_as_the_network_does(tmp_path, dtype, tolerance):
    model = Residual()
    how = {**SMALL, "layers": "all"}
    store = extract(model, DIGITS, tmp_path, keep=["body", "fc"], keep_dtype=dtype, **how).store
    entry = store.info.passes["keep-body"]
    assert entry.parameters == (
        "body.1.weight", "body.1.bias", "inner.weight", "inner.bias", "fc.weight", "fc.bias",
    )  # fmt: skip
    assert entry.details["shape"] == [3, 8, 8]
    rules = store.info.passes["norms-uniform-T1-p1"].rules
    assert rules == gradient_norms(Residual(), images_of(model)).rules
    assert "reference" not in rules.values()
    assert check(tmp_path) == []
    for layers, p, temperature, target in [
        ("all", 1.0, 1.0, "uniform"),
        ("inner", 3.0, 2.0, "one-hot"),
    ]:
        chosen = list(entry.parameters) if layers == "all" else ["inner.weight", "inner.bias"]
        how = {"layers": chosen, "p": p, "temperature": temperature, "target": target}
        replay = Replay(store, "body", how["layers"], model=model)
        blocks = store.blocks("digits", fields=("index",), norms=(replay.name,), rows=4)
        asked = Objective(p, temperature, target)
        norms = torch.cat(
            [replay.norms(torch.from_numpy(block[replay.name]), asked) for block in blocks]
        )
        expected = gradient_norms(Residual(), images_of(model), **how)
        assert replay.parameters == expected.parameters
        torch.testing.assert_close(norms, expected.norms, rtol=tolerance, atol=tolerance)


def test_a_module_that_a_shortcut_passes_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"The input of module 'inner' cannot be kept"):
        extract(Residual(), DIGITS, tmp_path / "run", keep=["inner"], **SMALL)
    assert not (tmp_path / "run").exists()


def test_unknown_modules_and_types_are_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="such as stem, body, inner, fc, got 'head'"):
        extract(Residual(), DIGITS, tmp_path, keep=["head"], **SMALL)
    with pytest.raises(InvalidArgument, match="a type of float32 or float16, got 'int8'"):
        extract(Residual(), DIGITS, tmp_path, keep=["body"], keep_dtype="int8", **SMALL)


def test_questions_that_the_kept_input_cannot_answer(tmp_path):
    store = extract(Residual(), DIGITS, tmp_path, layers="last", keep=["body"], limit=10).store
    with pytest.raises(NotRecorded, match=r"record it with `gradscore extract --run .* --keep fc"):
        Replay(store, "fc", "last")
    with pytest.raises(NotRecorded, match=r"Parameter stem.weight does not lie behind"):
        Replay(store, "body", "all")
    with pytest.raises(RunError, match="Expected the run's weights"):
        Replay(store, "body", "last", model=Residual(1))


def test_kept_activations_are_those_that_entered(tmp_path):
    model = Residual()
    extract(model, DIGITS, tmp_path, keep=["body"], keep_dtype="float16", **SMALL)
    blocks = list(RunStore(tmp_path).blocks("digits", norms=["keep-body"]))
    kept = np.concatenate([block["keep-body"] for block in blocks])
    assert kept.dtype == np.float16
    with torch.no_grad():
        expected = model.stem(images_of(model)).half().numpy()
    np.testing.assert_array_equal(kept, expected)
