"""Weight files are read without running code, fitted strictly, and fingerprinted."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gradscore.errors import WeightsError
from gradscore.models import weights_sha256
from gradscore.models.weights import Weights, fit_weights, load_weights


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


class Intruder:
    """Would write a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        """Ask for ``open(path, "w")`` to be called."""
        return open, (self.path, "w")


def assert_same(tensors, expected):
    assert list(tensors) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    "suffix", [".safetensors", ".pth", ".pt", ".th", ".tar", ".PTH", ".bin", ".ckpt"]
)
def test_every_kind_of_file_gives_the_same_tensors(tmp_path, suffix):
    state, path = network().state_dict(), tmp_path / f"w{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save(dict(state), path)
    tensors = load_weights(path).tensors
    assert_same({name: tensors[name] for name in state}, state)


def test_npz_gives_its_arrays(tmp_path):
    np.savez(tmp_path / "w.npz", **{"a/b": np.arange(6.0).reshape(2, 3)})
    tensors = load_weights(tmp_path / "w.npz").tensors
    assert_same(tensors, {"a/b": torch.arange(6.0).double().view(2, 3)})


@pytest.mark.parametrize("wrap", ["state_dict", "model", "model_state_dict", "net", "student"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.backbone."])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrap, prefix):
    model = network()
    state = {name: value + 1 for name, value in model.state_dict().items()}
    inner = {prefix + name: value for name, value in state.items()}
    torch.save({"epoch": 3, wrap: inner}, tmp_path / "w.pth")
    notices = fit_weights(model, load_weights(tmp_path / "w.pth"))
    assert_same(model.state_dict(), state)
    assert len(notices) == bool(prefix)
    assert all(f"prefix {prefix!r}" in notice for notice in notices)


def test_a_prefix_that_the_model_bears_itself_stays():
    model = nn.ModuleDict({"model": nn.Linear(2, 2)})
    state = {name: value + 1 for name, value in model.state_dict().items()}
    assert fit_weights(model, Weights(state, "w")) == ()
    assert_same(model.state_dict(), state)


def test_a_prefix_that_not_all_names_bear_stays():
    tensors = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"2 unexpected: module\.a, b"):
        fit_weights(nn.Identity(), Weights(tensors, "w"))


def test_faults_are_those_of_the_names_that_fit_best():
    model = network()
    tensors = {f"net.{name}": value for name, value in model.state_dict().items()}
    del tensors["net.3.bias"]
    with pytest.raises(WeightsError, match=r"the model\. 1 missing: 3\.bias\.$"):
        fit_weights(model, Weights(tensors, "w"))


def test_pickled_code_is_never_run(tmp_path):
    bait = tmp_path / "touched"
    torch.save({"a": torch.zeros(1), "b": Intruder(str(bait))}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"io\.open, which is never loaded"):
        load_weights(tmp_path / "w.pth")
    (tmp_path / "w.tar").write_bytes(pickle.dumps(Intruder(str(bait))))
    with pytest.raises(WeightsError):
        load_weights(tmp_path / "w.tar")
    np.savez(tmp_path / "w.npz", a=np.array([Intruder(str(bait))], dtype=object))
    with pytest.raises(WeightsError):
        load_weights(tmp_path / "w.npz")
    assert not bait.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".npz"])
@pytest.mark.parametrize("damage", ["empty", "noise", "truncated"])
def test_a_damaged_file_is_named(tmp_path, suffix, damage):
    path = tmp_path / f"w{suffix}"
    if suffix == ".npz":
        np.savez(path, a=np.zeros(1000))
    else:
        (save_file if suffix == ".safetensors" else torch.save)({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "noise": b"no weights", "truncated": whole[:-700]}[damage])
    with pytest.raises(WeightsError, match=r"w\.") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "Expected named tensors in .*, got Tensor"),
        ({}, "got dict without entries"),
        ({"epoch": 1, "loss": 0.5}, "no tensors are: epoch, loss"),
        ({"state_dict": {"a": torch.zeros(1), "b": 2}}, "no tensors are: b"),
    ],
)
def test_files_without_named_tensors_are_told_apart(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        load_weights(tmp_path / "w.pth")


def test_missing_files_and_unknown_endings_are_named(tmp_path):
    with pytest.raises(WeightsError, match="No weight file at"):
        load_weights(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match=r"ending in \.safetensors, .*, got '.*w\.onnx'"):
        load_weights(tmp_path / "w.onnx")


def test_disagreements_are_all_listed_and_change_nothing():
    model = network()
    before = weights_sha256(model)
    tensors = {name: value + 1 for name, value in model.state_dict().items()}
    tensors["extra"] = tensors.pop("0.weight")
    tensors["3.weight"] = torch.zeros(3, 16)
    with pytest.raises(WeightsError) as caught:
        fit_weights(model, Weights(tensors, "w.pth"))
    assert str(caught.value) == (
        "The weights of w.pth do not fit the model. 1 missing: 0.weight; 1 unexpected: extra; "
        "1 of another shape: 3.weight (expected [2, 16], got [3, 16])."
    )
    assert weights_sha256(model) == before


def test_many_names_are_cut_short():
    with pytest.raises(WeightsError, match=r"20 unexpected: x0, .*, x7 and 12 more"):
        fit_weights(nn.Identity(), Weights({f"x{i}": torch.zeros(1) for i in range(20)}, "w.pth"))


def test_step_counters_of_batch_norm_may_be_missing():
    model, donor = network(), network()
    tensors = {n: x + 1 for n, x in donor.state_dict().items() if "num_batches" not in n}
    fit_weights(model, Weights(tensors, "w.pth"))
    assert_same({n: x for n, x in model.state_dict().items() if n in tensors}, tensors)


def test_half_precision_files_fill_a_float32_model():
    model = network()
    tensors = {n: x.half() if x.is_floating_point() else x for n, x in model.state_dict().items()}
    fit_weights(model, Weights(tensors, "w.pth"))
    assert {x.dtype for x in model.parameters()} == {torch.float32}


def test_the_fingerprint_is_of_the_tensors_alone():
    model = network()
    first = weights_sha256(model)
    assert weights_sha256(network()) == first
    turned = network()
    turned[3].weight.data = turned[3].weight.data.T.contiguous().T  # other strides, same values
    assert weights_sha256(turned) == first
    assert weights_sha256(network().requires_grad_(False)) == first
    assert weights_sha256(network().double()) != first
    changed = network()
    changed[1].running_mean[0] += 1e-6
    assert weights_sha256(changed) != first
    renamed = nn.Sequential(*network().children(), nn.Identity())
    assert weights_sha256(renamed) == first
    assert weights_sha256(nn.Sequential(nn.Identity(), *network().children())) != first


def test_the_fingerprint_takes_half_precision_and_scalars():
    model = nn.BatchNorm1d(2).bfloat16()
    assert len(weights_sha256(model)) == 64
