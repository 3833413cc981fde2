"""Errors of Python calls name arguments; on the command line the same ones name options."""

import ast
import re
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from helpers.commands import call
from torch import nn

import gradscore as gs
from gradscore.cli import cli
from gradscore.cli.console import ALONE, as_options
from gradscore.errors import InvalidArgument

PACKAGE = Path(gs.__file__).parent
LIBRARY = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "cli")
OPTION = re.compile(r"--?[a-z][a-z-]*")


def texts(tree):
    """Yield the texts of a module that are no documentation."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in documentation:
            yield node.value


def options_in(text):
    """Return the options that a text names; parts of a command, alone or in backquotes, may."""
    if OPTION.fullmatch(text) or text.startswith("`gradscore "):
        return []
    return re.findall(r"(?<![\w{;-])--[a-z][a-z-]+", text)


def test_the_library_names_no_option_of_the_command_line():
    found = {
        (path.name, text)
        for path in LIBRARY
        for text in texts(ast.parse(path.read_text()))
        if options_in(text)
    }
    assert found == set()


def test_an_option_would_be_found():
    tree = ast.parse('"""--a"""\nraise ValueError(f"give --fit {x}, or {y}", "--weights")')
    assert [options_in(text) for text in texts(tree) if options_in(text)] == [["--fit"]]


def helped(command, name="gradscore"):
    """Yield each option of a command and of those within it, with its help."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield f"{name} {parameter.opts[-1]}", parameter.help or ""
    for inner in getattr(command, "commands", {}).values():
        yield from helped(inner, f"{name} {inner.name}")


def test_every_option_says_in_a_sentence_what_it_does():
    told = dict(helped(cli))
    assert len(told) > 100
    assert {name for name, text in told.items() if not re.match(r"[A-Za-z].*\.$", text)} == set()
    vague = ("Store what", "to ask later", "record the answers", "is answered", "Repeatable")
    assert {name for name, text in told.items() if any(v in text for v in vague)} == set()


def test_what_may_be_repeated_says_so():
    def several(command):
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.multiple:
                yield parameter
        for inner in getattr(command, "commands", {}).values():
            yield from several(inner)

    found = list(several(cli))
    assert len(found) > 30
    assert [one.opts for one in found if "May be repeated." not in one.help] == []


def test_arguments_that_messages_name_alone_become_options():
    options = {name.rpartition("--")[2].replace("-", "_") for name, _ in helped(cli)}
    of_python = {"images", "model"}
    found = {
        name
        for path in LIBRARY
        for text in texts(ast.parse(path.read_text()))
        for name in re.findall(r"(?<!`)`([a-z_]+)`(?!`)", text)
    }
    assert found & options - of_python == set(ALONE)
    assert as_options("more images, or a lower `tpr`.") == "more images, or a lower --tpr."
    assert as_options("leave out `fit` and `cross_fit`") == "leave out --fit and --cross-fit"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("give `fit='SET'`.", "give --fit SET."),
        ("choose `batch_size='auto'`", "choose --batch-size auto"),
        ("`limit=14` or more", "--limit 14 or more"),
        ("`weights='/a b/w.pth#ema'` takes", "--weights '/a b/w.pth#ema' takes"),
        ("`preprocessing={'resize': 4, 'crop': 8}`", "--resize 4 --crop 8"),
        ("`preprocessing={'resize': S, 'mean': M}`", "--resize S --mean M"),
        ("run `gradscore extract --run r`", "run `gradscore extract --run r`"),
        ("the model's `preprocessing`", "the model's `preprocessing`"),
        ("`fit='a'b'`", "--fit 'a'b'"),
        ('`model="python:it\'s:f"`', "--model 'python:it'\"'\"'s:f'"),
    ],
)
def test_arguments_become_options(message, told):
    assert as_options(message) == told


def test_one_error_speaks_both_languages(tmp_path, capsys):
    with pytest.raises(gs.GradScoreError, match=re.escape("add `record='odin'`.")):
        gs.extract("digits", {"a": ("id", "digits:test")}, tmp_path / "r", epsilon=0.1)
    how = ["--id", "a=digits:test", "--run", str(tmp_path / "r")]
    assert call("extract", "--model", "digits", *how, "--epsilon", "0.1") == 1
    assert "add --record odin." in capsys.readouterr().err


def test_what_is_told_speaks_of_options_too(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8, 3), np.uint8))
    how = ["--id", f"a={tmp_path}/a.npz", "--run", str(tmp_path / "r"), "--layers", "last"]
    model = "python:torchvision.models:mobilenet_v3_small?num_classes=2"
    assert call("extract", "--model", model, *how) == 0
    told = capsys.readouterr().err
    assert "gives; --weights FILE takes others." in told
    assert "--resize S --crop S --mean M --std D changes it." in told
    assert "give --resize 8 --crop 8." in told


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("asked") / "run"
    return gs.extract("digits", {"a": ("id", "digits:test")}, path, layers="last", limit=4).path


@pytest.mark.parametrize("option", ["foo", "T", "Layers"])
def test_an_unknown_option_of_a_score_names_the_known(run, option):
    known = "known: layers, p, temperature, target, epsilon, fit."
    with pytest.raises(InvalidArgument, match=f"Unknown option {option}; {known}"):
        gs.Run(run).score("a", method="gradnorm", **{option: 1})


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"sets": "digits:test"}, "Expected sets as {'NAME': ('id', 'PATH')}, got 'digits:test'"),
        ({"sets": [("a", "id", "x")]}, "Expected sets as {'NAME': ('id', 'PATH')}, got list"),
        ({"sets": {"a": "digits:test"}}, "Expected set 'a' as ('id', 'PATH') or so, got 'digits"),
        ({"sets": {"a": ("id", torch.zeros(9))}}, "Expected the path of set 'a', got Tensor"),
        ({"limit": {"b": 3}}, "Expected limits of a, got one of 'b'"),
        ({"limit": "3"}, "Expected a limit of 1 or more images, got '3'"),
        ({"limit": {"a": 0}}, "Expected a limit of 1 or more images, got 0"),
        ({"blocks": "stem"}, "Expected blocks as {'NAME': 'GLOB'}, got 'stem'"),
        ({"preprocessing": {"resiz": 8}}, "fields of resize, crop, mean, std, interpolation, got"),
        ({"workers": None}, "Expected workers >= 0, got None"),
        ({"layers": 3}, "Expected layers as text, or several, got 3"),
    ],
)
def test_arguments_of_another_form_are_named(run, how, expected):
    how = {"sets": {"a": ("id", "digits:test")}, "layers": "last", **how}
    with pytest.raises(InvalidArgument, match=re.escape(expected)):
        gs.extract("digits", run=run, **how)


def test_one_value_stands_for_a_list_of_one(tmp_path):
    sets = {"a": ("id", "digits:test")}
    how = {"layers": "block1", "p": 2, "temperature": 3, "target": "one-hot", "epsilon": 0.1}
    store = gs.extract("digits", sets, tmp_path / "r", limit=4, record="odin", **how).store
    norms, odin, _ = store.info.passes.values()
    assert (norms.p, norms.temperature, norms.target) == (2.0, 3.0, "one-hot")
    assert odin.kind == "odin"


def test_a_module_takes_its_preprocessing_as_a_mapping(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6)).eval()
    fields = {"resize": 8, "crop": 8, "mean": 0.5, "std": 0.5, "mode": "L"}
    sets = {"a": ("id", "digits:test")}
    how = {"layers": "last", "limit": 4}
    store = gs.extract(model, sets, tmp_path / "r", preprocessing=fields, **how).store
    assert store.info.preprocessing["crop"] == 8
    model.preprocessing = fields
    gs.extract(model, sets, tmp_path / "r", **how)
    with pytest.raises(InvalidArgument, match="missing 2 required"):
        gs.extract(
            nn.Sequential(*model), sets, tmp_path / "s", preprocessing={"resize": 8, "crop": 8}
        )
