"""Extraction: what is recorded is what the model answers; what disagrees is refused by name."""

import errno
import os
from itertools import product

import numpy as np
import pytest
import torch
from helpers.small_models import make_model
from PIL import Image
from torch import nn

from gradscore.data.named import digit_arrays
from gradscore.errors import (
    DataError,
    GradScoreError,
    ModelError,
    RunError,
)
from gradscore.extraction.classifier import find_batch_size
from gradscore.models.preprocessing import Preprocessing
from gradscore.objective import RecordedObjective
from gradscore.recorded import extract
from gradscore.reference import backward_norms, loss_function
from gradscore.run import RunStore, check
from gradscore.selection import differentiable_parameters

DIGITS = {"digits": ("id", "digits:test")}
SMALL = {"limit": 20, "batch_size": 8}


def recorded(run, name="digits", fields=("features", "logits", "label", "path", "index")):
    store = RunStore(run)
    blocks = list(store.blocks(name, fields=fields, norms=list(store.info.passes)))
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def close(one, other):
    """Compare runs whose passes were computed apart in one, and from one forward in the other."""
    text = one.pop("path"), other.pop("path")
    return np.array_equal(*text) and all(np.allclose(one[k], other[k], rtol=1e-5) for k in other)


class Steps:
    """Notes what it is told; raises an error after some images."""

    def __init__(self, error_after=None, error=KeyboardInterrupt):
        self.told, self.left, self.error = [], error_after, error

    def start(self, total, description):
        self.told.append((description, total))

    def advance(self, n):
        self.told.append(n)
        if self.left is not None:
            self.left -= n
            if self.left < 0:
                raise self.error

    def finish(self):
        self.told.append("finish")


def images_of(model, count):
    from gradscore.data import open_set

    images = open_set("digits:test", limit=count)
    return torch.stack([model.preprocessing(image) for image in images])


def test_features_and_logits_are_the_models(tmp_path):
    model, steps = make_model(), Steps()
    store = extract(model, DIGITS, tmp_path, layers="last", progress=steps, **SMALL).store
    assert list(store.info.passes) == ["blocks"]
    rows = recorded(tmp_path)
    with torch.no_grad():
        features = model[:-1](images_of(model, 20))
        torch.testing.assert_close(torch.from_numpy(rows["features"]), features)
        torch.testing.assert_close(torch.from_numpy(rows["logits"]), model[-1](features))
    assert rows["index"].tolist() == list(range(20))
    assert set(rows["path"]) <= set(digit_arrays("test")[2])
    assert sorted(np.bincount(rows["label"])) == [3, 3, 3, 3, 4, 4]  # spread over the classes
    head = store.head()
    np.testing.assert_array_equal(head["weight"], model[-1].weight.detach())
    np.testing.assert_array_equal(head["bias"], model[-1].bias.detach())
    assert steps.told == [("digits", 20), 8, 8, 4, "finish"]
    assert check(tmp_path) == []
    assert store.info.groups["last"] == ("4.weight",)


@pytest.mark.parametrize("gradients", ["rules", "vmap", "reference"])
def test_norms_are_those_of_autograd(tmp_path, gradients):
    model = make_model()
    orders, temperatures, targets = (0.5, 1, 2, float("inf")), (1, 3.5), ("uniform", "one-hot")
    how = {"p": orders, "temperature": temperatures, "target": targets, "gradients": gradients}
    store = extract(model, DIGITS, tmp_path, limit=6, batch_size=4, **how).store
    rows = recorded(tmp_path)
    double, images = make_model().double(), images_of(model, 6).double()
    parameters = differentiable_parameters(double)
    for target, temperature in product(targets, temperatures):
        losses = [loss_function(RecordedObjective(1.0, temperature, target))] * len(images)
        expected = backward_norms(double, images, parameters, losses, orders)
        for p, norms in zip(orders, expected, strict=True):
            entry = store.find_norms(
                RecordedObjective(p, temperature, target), store.info.parameters
            )
            got = torch.from_numpy(rows[entry.name])
            torch.testing.assert_close(got.double(), norms, rtol=1e-4, atol=1e-8)
    assert len(store.info.passes) == 17
    for entry in (e for e in store.info.passes.values() if e.kind == "norms"):
        assert list(entry.rules) == list(entry.parameters) == list(store.info.parameters)
    assert "norms-one-hot-T3.5-pinf" in store.info.passes
    assert check(tmp_path) == []


def test_a_subset_of_layers_has_a_pass_of_its_own(tmp_path):
    store = extract(make_model(), DIGITS, tmp_path, layers="0,2.*", **SMALL).store
    (entry,) = (e for e in store.info.passes.values() if e.kind == "norms")
    assert entry.name.startswith("norms-uniform-T1-p1-selection-")
    assert entry.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
    store = extract(make_model(), DIGITS, tmp_path, layers=["last", "0.weight"], **SMALL).store
    assert list(store.info.passes.values())[2].parameters == ("0.weight", "4.weight")


def test_a_head_without_closed_form_has_logits_and_norms_only(tmp_path):
    store = extract(make_model(head=False), DIGITS, tmp_path, layers="last", **SMALL).store
    assert store.info.features == 0
    assert not store.info.head.closed_form
    assert "something follows it" in store.info.head.reason
    assert list(store.info.passes) == ["norms-uniform-T1-p1-last", "blocks"]
    rows = recorded(tmp_path, fields=("logits",))
    assert rows["logits"].shape == (20, 6)
    assert rows["norms-uniform-T1-p1-last"].shape == (20, 1)
    assert check(tmp_path) == []


def test_a_later_question_adds_a_pass_and_leaves_the_rest(tmp_path):
    extract(make_model(), DIGITS, tmp_path, layers="last", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")}
    store = extract(make_model(), DIGITS, tmp_path, p=(1.0, 2.0), limit=20, batch_size=5).store
    assert {path: path.stat().st_mtime_ns for path in before} == before
    norms = ["norms-uniform-T1-p1", "norms-uniform-T1-p2"]
    assert sorted(store.info.passes) == ["blocks", *norms]
    assert recorded(tmp_path)["norms-uniform-T1-p2"].shape == (20, 6)
    sets = {**DIGITS, "noise": ("ood", "digits:noise")}
    store = extract(make_model(), sets, tmp_path, **SMALL).store
    assert store.sets["noise"].complete("norms-uniform-T1-p1")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert check(tmp_path) == []


def test_stretches_that_differ_are_each_completed(tmp_path):
    together = tmp_path / "together"
    extract(make_model(), DIGITS, together, shard_rows=8, **SMALL)
    run = tmp_path / "run"
    for layers in ("last", "all"):
        with pytest.raises(KeyboardInterrupt):
            extract(
                make_model(), DIGITS, run, layers=layers, shard_rows=8, progress=Steps(0), **SMALL
            )
    entry = RunStore(run).sets["digits"]
    assert (entry.done("base"), entry.done("norms-uniform-T1-p1")) == (8, 8)
    extract(make_model(), DIGITS, run, shard_rows=8, **SMALL)
    assert check(run) == []
    assert close(recorded(run), recorded(together))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_run_resumes_where_it_stopped(tmp_path, error):
    how = {"batch_size": 8, "limit": 60, "shard_rows": 16}
    extract(make_model(), DIGITS, tmp_path / "whole", **how)
    with pytest.raises(error):
        extract(make_model(), DIGITS, tmp_path / "run", progress=Steps(30, error), **how)
    store = RunStore(tmp_path / "run")
    assert store.sets["digits"].done("base") == 32
    assert check(tmp_path / "run") == []
    steps = Steps()
    extract(make_model(), DIGITS, tmp_path / "run", progress=steps, **how)
    assert steps.told[0] == ("digits", 28)
    assert same(recorded(tmp_path / "run"), recorded(tmp_path / "whole"))
    steps = Steps()
    extract(make_model(), DIGITS, tmp_path / "run", progress=steps, **how)
    assert steps.told == []


def changed(**attributes):
    model = make_model()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (make_model(1), {}, "has weights_sha256 '[0-9a-f]+', got '[0-9a-f]+'"),
        (changed(spec="other"), {}, "has model 'small', got 'other'"),
        (
            changed(preprocessing=Preprocessing(None, None, (0.4,), (0.5,), mode="L")),
            {},
            r"has preprocessing.mean \[0.5\], got \[0.4\]",
        ),
        (make_model(), {"precision": "bfloat16"}, "has precision 'float32', got 'bfloat16'"),
        (make_model(), {"limit": 5}, "Set digits of the run .* has 20 images, got 5"),
        (make_model(), {"gradients": "vmap"}, "has gradients 'rules', got 'vmap'"),
        (make_model(), {"blocks": {"block9": "0.*"}}, "has groups.block1 .*, got None"),
    ],
)
def test_what_disagrees_is_refused_with_both_values(tmp_path, model, options, message):
    extract(make_model(), DIGITS, tmp_path, **SMALL)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises((RunError, DataError), match=message):
        extract(model, DIGITS, tmp_path, **{**SMALL, **options})
    assert (tmp_path / "run.json").read_bytes() == before
    RunStore.open_for_writing(tmp_path).close()


def test_another_list_or_role_of_a_set_is_refused(tmp_path):
    extract(make_model(), DIGITS, tmp_path, layers="last", **SMALL)
    with pytest.raises(DataError, match="The images of set digits have changed since"):
        extract(make_model(), {"digits": ("id", "digits:noise")}, tmp_path, **SMALL)
    with pytest.raises(RunError, match="Set digits of the run has role 'id', got 'ood'"):
        extract(make_model(), {"digits": ("ood", "digits:test")}, tmp_path, **SMALL)


def test_a_second_writer_is_refused(tmp_path):
    extract(make_model(), DIGITS, tmp_path, layers="last", **SMALL)
    with (
        RunStore.open_for_writing(tmp_path),
        pytest.raises(RunError, match=rf"being written by another process \(pid {os.getpid()}\)"),
    ):
        extract(make_model(), DIGITS, tmp_path, layers="last", **SMALL)


@pytest.fixture
def folder(tmp_path):
    """Thirty images, the eleventh of them broken."""
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        picture = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
        picture.save(root / f"{number:02}.png")
    (root / "10.png").write_bytes((root / "10.png").read_bytes()[:60])
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_fails_by_name_or_is_skipped(tmp_path, folder, workers):
    sets, run = {"mine": (None, folder)}, tmp_path / "run"
    how = {"batch_size": 4, "shard_rows": 4, "workers": workers}
    with pytest.raises(DataError, match=r"10.png: damaged image: .*`on_error='skip'`"):
        extract(make_model(), sets, run, layers="last", **how)
    assert RunStore(run).sets["mine"].done("base") == 8
    store = extract(make_model(), sets, run, layers="last", on_error="skip", **how).store
    (failed,) = store.sets["mine"].failed
    assert (failed.index, failed.path) == (10, "10.png")
    assert "damaged image" in failed.reason
    index = [i for i in range(30) if i != 10]
    assert recorded(run, "mine")["index"].tolist() == index
    # A pass added later leaves the image out again, and meets the others in the same batches.
    extract(make_model(), sets, run, **how)
    whole = tmp_path / "whole"
    extract(make_model(), sets, whole, on_error="skip", **how)
    assert close(recorded(run, "mine"), recorded(whole, "mine"))
    assert check(run) == []
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "20.png")
    with pytest.raises(DataError, match=r"20.png: expected \[1, 8, 8\] after preprocessing"):
        extract(make_model(), sets, run, p=(2.0,), on_error="skip", **how)


def test_a_set_of_which_no_image_of_a_batch_can_be_read(tmp_path, folder):
    for number in range(8, 12):
        (folder / f"{number:02}.png").write_bytes(b"broken")
    how = {"batch_size": 4, "shard_rows": 4, "on_error": "skip"}
    store = extract(make_model(), {"mine": (None, folder)}, tmp_path / "run", **how).store
    assert len(store.sets["mine"].failed) == 4
    assert recorded(tmp_path / "run", "mine")["index"].tolist() == [*range(8), *range(12, 30)]
    assert check(tmp_path / "run") == []


class Exploding(nn.Module):
    """Answers infinity to the images whose first pixel is white."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 3)
        self.preprocessing = Preprocessing(None, None, (0.0,), (1.0,), mode="L")

    def forward(self, x):
        return self.fc(torch.where(x == 1, torch.inf, x).flatten(1))


def test_a_row_that_is_not_finite_is_named(tmp_path, folder):
    pixels = np.zeros((8, 8), np.uint8)
    Image.fromarray(pixels).save(folder / "10.png")
    pixels[0, 0] = 255
    Image.fromarray(pixels).save(folder / "21.png")
    for number in (*range(10), *range(11, 21), *range(22, 30)):
        (folder / f"{number:02}.png").unlink()
    model, sets = Exploding().eval(), {"mine": (None, folder)}
    with pytest.raises(DataError, match=r"21.png \(image 1 of mine\): .* are not finite"):
        extract(model, sets, tmp_path / "run", layers="last")
    store = extract(model, sets, tmp_path / "run", layers="last", on_error="skip").store
    assert [row.path for row in store.sets["mine"].failed] == ["21.png"]
    assert check(tmp_path / "run") == []


def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path, monkeypatch):
    replace, calls = os.replace, []

    def full(source, destination, **how):
        calls.append(destination)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, destination, **how)

    how = {"layers": "last", "batch_size": 8, "shard_rows": 8, "limit": 60}
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(RunError, match=r"No space left on device. What was finished is kept"):
            extract(make_model(), DIGITS, tmp_path, **how)
    done = RunStore(tmp_path).sets["digits"].done("base")
    assert 0 < done < 60
    assert check(tmp_path) == []
    extract(make_model(), DIGITS, tmp_path, **how)
    assert len(recorded(tmp_path)["index"]) == 60


def test_workers_and_shards_change_nothing(tmp_path):
    extract(make_model(), DIGITS, tmp_path / "one", **SMALL)
    extract(make_model(), DIGITS, tmp_path / "two", workers=2, shard_rows=8, **SMALL)
    assert same(recorded(tmp_path / "one"), recorded(tmp_path / "two"))
    settings = RunStore(tmp_path / "two").sets["digits"].passes["base"][0].settings
    assert settings == {
        "device": "cpu",
        "batch_size": 8,
        "workers": 2,
        "layout": "channels_first",
    }


@pytest.mark.parametrize("layers", ["last", "all"])
def test_a_forward_alone_has_the_channels_last(tmp_path, layers):
    model, seen = make_model(), []
    model[0] = nn.Conv2d(3, 4, 3)
    model.preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="RGB")
    model[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    store = extract(model, DIGITS, tmp_path, layers=layers, **SMALL).store
    (shard,) = store.sets["digits"].passes["base"]
    # A lone image may follow, by which the first batch of a kind is checked.
    seen = [images for images in seen if len(images) == 4]
    last = layers == "last"
    assert shard.settings["layout"] == ("channels_last" if last else "channels_first")
    assert seen[-1].is_contiguous(memory_format=torch.channels_last) is last
    expected = model(seen[-1].contiguous()).detach().numpy()
    np.testing.assert_allclose(recorded(tmp_path)["logits"][-4:], expected, rtol=1e-5, atol=1e-6)


def test_a_model_that_flattens_by_view_is_extracted_with_the_channels_first(tmp_path):
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4 * 9, 6)

        def forward(self, x):
            x = self.layer(x)
            return self.head(x.view(x.size(0), -1))

    model = Viewed().eval()
    model.preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="RGB")
    store = extract(model, DIGITS, tmp_path, layers="last", **SMALL).store
    (shard,) = store.sets["digits"].passes["base"]
    assert shard.settings["layout"] == "channels_first"


def test_fields_of_the_preprocessing_can_be_overridden(tmp_path):
    how = {"preprocessing": {"mean": 0.25, "crop": None}, "layers": "last"}
    store = extract(make_model(), DIGITS, tmp_path, **how, **SMALL).store
    assert store.info.preprocessing["mean"] == [0.25]
    assert store.info.preprocessing["std"] == [0.5]


def test_the_batch_size_is_found_once_and_kept(tmp_path, monkeypatch):
    how = {"layers": "last", "limit": 40, "batch_size": "auto", "shard_rows": 1}
    tried = iter([8, 16])
    monkeypatch.setattr("gradscore.extraction.record.find_batch_size", lambda *_: next(tried))
    with pytest.raises(KeyboardInterrupt):
        extract(make_model(), DIGITS, tmp_path, progress=Steps(10), **how)
    store = extract(make_model(), DIGITS, tmp_path, **how).store
    sizes = [shard.settings["batch_size"] for shard in store.sets["digits"].passes["base"]]
    assert sizes == [8] * 5


@pytest.mark.parametrize(
    ("seconds", "found", "tried"),
    [
        (lambda size: 1e-3 * size if size < 64 else 1e-2, 256, 256),
        (lambda size: 0.2 * size, 1, 4),
        (lambda size: 0.2 + 1e-3 * size, 256, 256),
    ],
    ids=["short runs end no search", "no gain", "a gain to the end"],
)
def test_the_search_for_a_batch_size_ends_where_throughput_does(
    monkeypatch, seconds, found, tried
):
    now, sizes = [0.0], []

    def compute(images):
        sizes.append(len(images))
        now[0] += seconds(len(images))

    monkeypatch.setattr("gradscore.extraction.classifier.time.perf_counter", lambda: now[0])
    image = torch.zeros(1, 1, 2, 2)
    assert find_batch_size(compute, image, torch.device("cpu")) == found
    assert max(sizes) == tried


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_is_stored_in_float32(tmp_path, precision):
    extract(make_model(), DIGITS, tmp_path / "single", **SMALL)
    extract(make_model(), DIGITS, tmp_path / "half", precision=precision, **SMALL)
    single, half = recorded(tmp_path / "single"), recorded(tmp_path / "half")
    for name in ("features", "logits", "norms-uniform-T1-p1"):
        assert half[name].dtype == np.float32
        np.testing.assert_allclose(half[name], single[name], rtol=0.1, atol=0.05)
        assert not np.array_equal(half[name], single[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": {}}, "at least one set of images, got none"),
        ({"sets": {"a/b": ("id", "digits:test")}}, "Expected a set name of letters"),
        ({"sets": {"mean": ("ood", "digits:noise")}}, "another set name than mean"),
        ({"sets": {"a": ("train", "digits:test")}}, "role id or ood or fit or None, got 'train'"),
        ({"batch_size": 0}, "a batch size of 1 or more, or auto, got 0"),
        ({"batch_size": "max"}, "got 'max'"),
        ({"device": "tpu"}, "device auto or cpu or cuda, got 'tpu'"),
        ({"precision": "int8"}, "precision float32 or tf32 or bfloat16 or float16, got 'int8'"),
        ({"workers": -1}, "workers >= 0"),
        ({"on_error": "ignore"}, "on_error fail or skip, got 'ignore'"),
        ({"gradients": "magic"}, "gradients rules or reference or vmap, got 'magic'"),
        ({"layers": "block7"}, "got 'block7'"),
        ({"p": (0,)}, "p > 0"),
        ({"temperature": (-1,)}, "temperature > 0"),
        ({"target": ("cat",)}, "target uniform or one-hot or all-ones, got 'cat'"),
        ({"weights": "file.pth"}, "weights with a model's spec only"),
        ({"model": 3}, "a model's spec or an nn.Module, got 3"),
        ({"model": nn.Linear(2, 2)}, "preprocessing with a module of your own"),
        ({"sets": {"a": ("id", "nowhere")}}, "No such file or folder: 'nowhere'"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(tmp_path, options, message):
    arguments = {"model": make_model(), "sets": DIGITS, **options}
    with pytest.raises(GradScoreError, match=message):
        extract(arguments.pop("model"), arguments.pop("sets"), tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_labels_that_the_model_lacks_are_refused_of_an_id_set(tmp_path):
    images = np.zeros((4, 1, 8, 8), np.float32)
    np.savez(tmp_path / "set.npz", images=images, labels=np.array([0, 1, 6, 2]))
    message = r"labels of 0 to 5 in set 'a', got 6 \(set.npz/2\)"
    with pytest.raises(DataError, match=message):
        extract(make_model(), {"a": ("id", tmp_path / "set.npz")}, tmp_path / "run")
    extract(make_model(), {"a": ("ood", tmp_path / "set.npz")}, tmp_path / "run", layers="last")


def small_linear(*after):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1 if not after else 6), *after).eval()
    model.preprocessing = make_model().preprocessing
    return model


def test_a_model_with_one_logit_is_refused(tmp_path):
    with pytest.raises(
        ModelError, match="logits of two or more classes, got one logit: return 0 and f"
    ):
        extract(small_linear(), DIGITS, tmp_path / "run", **SMALL)


def test_outputs_that_are_probabilities_are_told_of(tmp_path):
    store = extract(small_linear(nn.Softmax(dim=1)), DIGITS, tmp_path / "one", **SMALL).store
    assert "its outputs are probabilities" in store.info.notice
    assert RunStore(tmp_path / "one").info.notice == store.info.notice
    for other in (nn.Sigmoid(), nn.LogSoftmax(dim=1), nn.Identity()):
        store = extract(
            small_linear(other), DIGITS, tmp_path / type(other).__name__, **SMALL
        ).store
        assert store.info.notice == ""


def test_models_that_cannot_be_asked_are_refused(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))
    model.preprocessing = make_model().preprocessing
    with pytest.raises(ModelError, match=r"call model.eval\(\) first"):
        extract(model, DIGITS, tmp_path / "run", **SMALL)
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="Expected a CUDA device, found none"):
            extract(make_model(), DIGITS, tmp_path / "run", device="cuda", **SMALL)
