"""The examples in the package's docstrings are what Python answers."""

import doctest
import importlib
from pathlib import Path
from types import ModuleType

import pytest

import gradscore
from gradscore.methods import METHODS

PACKAGE = Path(gradscore.__file__).parent
SHOWING = sorted(path for path in PACKAGE.rglob("*.py") if ">>>" in path.read_text())


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@pytest.mark.parametrize("name", [*map(name_of, SHOWING)])
def test_every_example_is_what_python_answers(name):
    known = set(METHODS)
    try:
        assert doctest.testmod(importlib.import_module(name)).failed == 0
    finally:
        for own in METHODS.keys() - known:
            del METHODS[own]


def test_a_wrong_example_would_be_found(capsys):
    module = ModuleType("wrong", ">>> 1 + 1\n3\n")
    assert doctest.testmod(module).failed == 1
    assert "Expected:" in capsys.readouterr().out
