"""Checkpoints as training frameworks leave them: the weights are found, and nothing is run."""

import argparse
import collections
import datetime
import functools
import json
import pathlib
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gradscore.errors import WeightsError
from gradscore.models import create_model
from gradscore.models.weights import fit_weights, load_weights


class Settings(dict):
    """What frameworks keep settings in; saved by reference to this class."""


class Chained(list):
    """Appended to when it is unpickled."""


def network(value=0.0):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def state(value):
    return network(value).state_dict()


def loaded(path):
    """Return the one value that all weights have once a file was loaded, and what was told."""
    model = network()
    notices = fit_weights(model, load_weights(path))
    (value,) = {float(x) for parameter in model.parameters() for x in parameter.detach().flatten()}
    return value, notices


def test_a_checkpoint_with_settings_gives_its_weights(tmp_path):
    path = tmp_path / "last.ckpt"
    settings = Settings(lr=0.1)
    settings.inner = argparse.Namespace(seed=1)
    torch.save(
        {
            "epoch": 3,
            "state_dict": {f"model.{name}": value for name, value in state(2.0).items()},
            "hyper_parameters": settings,
            "args": argparse.Namespace(data=pathlib.Path("images"), best=np.float64(0.9)),
            "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}],
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9)}},
        },
        path,
    )
    value, notices = loaded(f"{path}#state_dict")
    assert value == 2.0
    assert loaded(path)[0] == 2.0
    assert any("prefix 'model.'" in notice for notice in notices)


def test_nothing_of_a_settings_class_is_imported_or_called(tmp_path):
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": state(1.0), "settings": Settings(lr=1)}, path)
    data = path.read_bytes()
    # A class of a module that is nowhere: were it imported, loading would fail.
    path.write_bytes(data.replace(b"test_checkpoints", b"test_nowhere_____"[:16]))
    assert loaded(path)[0] == 1.0


def test_a_pickled_function_is_named_with_the_way_out(tmp_path):
    torch.save({"state_dict": state(1.0), "loss": nn.functional.relu}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"torch\.nn\.functional\.relu, which is ") as caught:
        load_weights(tmp_path / "w.pth")
    assert "torch.save(model.state_dict(), 'weights.pth')" in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_list_of_an_unknown_class_is_refused_in_one_line(tmp_path):
    torch.save({"state_dict": state(1.0), "history": Chained([1, 2])}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="more than plain tensors") as caught:
        load_weights(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_averaged_weights_beside_the_plain_are_told_of(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"state_dict": state(1.0), "state_dict_ema": state(2.0), "epoch": 1}, path)
    value, notices = loaded(path)
    assert value == 1.0
    assert "averaged weights too (state_dict_ema)" in notices[0]
    assert f"{path}#state_dict_ema" in notices[0]
    assert loaded(f"{path}#state_dict_ema") == (2.0, ())


def test_entries_inside_entries_have_a_dotted_key(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": state(1.0), "model_ema": {"module": state(3.0), "updates": 7}}, path)
    assert loaded(path)[0] == 1.0
    assert loaded(f"{path}#model_ema.module")[0] == 3.0


def test_several_sets_without_a_plain_one_are_listed(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"teacher": state(1.0), "student": state(2.0)}, path)
    with pytest.raises(WeightsError, match=r"several sets of weights: student, teacher; choose"):
        load_weights(path)
    assert loaded(f"{path}#teacher")[0] == 1.0
    with pytest.raises(WeightsError, match=r"got 'teachers'; it has student, teacher"):
        load_weights(f"{path}#teachers")


def test_a_file_whose_name_holds_a_number_sign_is_that_file(tmp_path):
    torch.save(state(4.0), tmp_path / "run#3.pth")
    assert loaded(tmp_path / "run#3.pth")[0] == 4.0


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_huggingface_is_read_whole_or_in_parts(tmp_path, name, parts):
    tensors = {name: value.clone() for name, value in state(5.0).items()}
    save = save_file if name.endswith("safetensors") else torch.save
    if parts == 1:
        save(tensors, tmp_path / name)
    else:
        where = {key: f"part-{i}{pathlib.Path(name).suffix}" for i, key in enumerate(tensors)}
        for key, part in where.items():
            save({key: tensors[key]}, tmp_path / part)
        (tmp_path / f"{name}.index.json").write_text(json.dumps({"weight_map": where}))
    assert loaded(tmp_path)[0] == 5.0


@pytest.mark.parametrize("weight_map", ["x", {"a": "../w.bin"}, {"a": 3}, [], None])
def test_an_index_names_files_of_its_own_folder(tmp_path, weight_map):
    torch.save(state(1.0), tmp_path / "w.bin")
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match="Expected a weight_map of file names"):
        load_weights(folder)


def test_a_folder_without_weights_says_what_it_should_hold(tmp_path):
    with pytest.raises(WeightsError, match=r"model\.safetensors or pytorch_model\.bin in the"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"", "empty file"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("w.ckpt", b"\n <!DOCTYPE html><html>", "web page"),
        ("w.bin", b"<html><body>404", "web page"),
        ("w.pth", b"\x89HDF\r\n\x1a\n" + bytes(64), r"HDF5 file \(Keras\)"),
    ],
)
def test_files_that_are_something_else_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_weights(tmp_path / name)


def test_a_whole_pickled_model_is_named(tmp_path):
    torch.save(network(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"whole pickled model or object \(torch\.nn\."):
        load_weights(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_scripted_program_is_named(tmp_path):
    torch.jit.save(torch.jit.trace(network(), torch.zeros(1, 4)), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="TorchScript program, which is never run"):
        load_weights(tmp_path / "w.pt")


def test_old_files_of_torch_are_read_like_new_ones(tmp_path):
    content = {"state_dict": state(6.0), "args": argparse.Namespace(lr=1.0)}
    torch.save(content, tmp_path / "w.pth.tar", _use_new_zipfile_serialization=False)
    assert loaded(tmp_path / "w.pth.tar")[0] == 6.0


def test_a_plain_pickle_of_an_unknown_class_gives_no_weights(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(collections.Counter(a=1), protocol=2))
    with pytest.raises(WeightsError):
        load_weights(tmp_path / "w.pth")


def test_a_factory_with_weights_of_its_own_is_told_of():
    model = create_model("python:torch.nn:Identity")
    assert "weights are those that python:torch.nn:Identity gives" in model.notices[0]
    assert create_model("digits").notices == ()


def test_what_was_chosen_is_said_before_the_first_image(tmp_path):
    from click.testing import CliRunner

    from gradscore.cli import cli

    inner = {f"net.{name}": x for name, x in create_model("digits").state_dict().items()}
    torch.save({"state_dict": inner, "state_dict_ema": inner}, tmp_path / "w.ckpt")
    command = ["--model", "digits", "--weights", str(tmp_path / "w.ckpt")]
    for rest in (["verify"], ["layers"], ["extract", "--id", "a=digits:test", "--limit", "4"]):
        run = ["--run", str(tmp_path / "run")] if rest[0] == "extract" else []
        result = CliRunner().invoke(cli, [*rest, *command, *run])
        assert result.exit_code == 0, result.stderr
        assert "prefix 'net.' was taken off" in result.stderr
        assert "w.ckpt#state_dict_ema' takes another" in result.stderr
    told = result.stderr.splitlines()
    recorded = next(i for i, line in enumerate(told) if "recorded" in line)
    assert recorded > max(i for i, line in enumerate(told) if "w.ckpt" in line)


def test_arrays_and_optimisers_beside_the_weights_are_not_looked_at(tmp_path):
    beside = {
        "history": np.arange(3.0),
        "rng": np.random.RandomState(0).get_state(),
        "optimizer": functools.partial(torch.optim.Adam, lr=0.1),
        "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    }
    torch.save({"state_dict": state(2.0), "hyper_parameters": beside}, tmp_path / "w.ckpt")
    assert loaded(tmp_path / "w.ckpt")[0] == 2.0


def below(prefix, value):
    return {f"{prefix}.{name}": tensor for name, tensor in state(value).items()}


@pytest.mark.parametrize("entry", ["", "model"])
def test_a_part_of_the_names_that_fits_is_told_of_and_taken(tmp_path, entry):
    path = tmp_path / "w.pth"
    names = {**below("teacher.backbone", 2.0), **below("student.backbone", 3.0)}
    names["n_averaged"] = torch.tensor(4)
    torch.save({entry: names, "epoch": 1} if entry else names, path)
    with pytest.raises(WeightsError) as caught:
        loaded(path)
    for part, value in (("teacher.backbone", 2.0), ("student.backbone", 3.0)):
        assert f"`weights='{path}#{part}'`" in str(caught.value)
        assert loaded(f"{path}#{part}") == (value, ())
        if entry:
            assert loaded(f"{path}#{entry}.{part}")[0] == value


def test_a_part_of_one_entry_of_several_has_the_entry_before_it(tmp_path):
    path = tmp_path / "w.pth"
    teacher = {**below("backbone", 2.0), "head.weight": torch.zeros(2)}
    torch.save({"student": state(1.0), "teacher": teacher, "loss": {"c": torch.zeros(1)}}, path)
    with pytest.raises(WeightsError, match=r"choose one by `weights='.*#teacher'`"):
        loaded(path)
    with pytest.raises(WeightsError, match=r"A part of it fits: `weights='.*#teacher\.backbone'`"):
        loaded(f"{path}#teacher")
    assert loaded(f"{path}#teacher.backbone")[0] == 2.0


def test_a_part_that_does_not_fit_is_not_told_of(tmp_path):
    torch.save(below("a", 1.0) | {"b.1.weight": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        fit_weights(nn.Linear(9, 9), load_weights(tmp_path / "w.pth"))
    assert "A part of it" not in str(caught.value)


def test_a_whole_model_in_an_entry_is_named(tmp_path):
    torch.save({"epoch": -1, "ema": None, "model": network()}, tmp_path / "best.pt")
    with pytest.raises(WeightsError, match=r"pickled object under 'model' \(torch\.nn\.modules\."):
        load_weights(tmp_path / "best.pt")


@pytest.mark.parametrize("parts", [1, 2])
def test_a_folders_file_may_be_a_checkpoint_like_any_other(tmp_path, parts):
    sets = {"state_dict": state(1.0), "ema": state(2.0)}
    if parts == 1:
        torch.save(sets | {"epoch": 3}, tmp_path / "pytorch_model.bin")
    else:
        names = list(sets["ema"])
        where = {name: f"part-{i}.bin" for i, name in enumerate(names)}
        for name, part in where.items():
            torch.save({key: {name: own[name]} for key, own in sets.items()}, tmp_path / part)
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": where}))
    value, (notice,) = loaded(tmp_path)
    assert value == 1.0
    assert f"{tmp_path}#ema" in notice
    assert loaded(f"{tmp_path}#ema")[0] == 2.0


def test_an_index_of_no_parts_is_refused(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(WeightsError, match="Expected a weight_map of file names"):
        load_weights(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        {"a": {"b": {"c": state(1.0)}}},
        {"a": {"b": torch.tensor(1.0)}},
        {"a": torch.tensor(1.0)},
        {"model": {"a": torch.tensor(1.0)}},
    ],
)
def test_what_is_there_instead_of_tensors_is_always_said(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=rf"are all in {next(iter(content))}\."):
        load_weights(tmp_path / "w.pth")
