"""``--backend``: the Triton kernels score a recorded run, here by the interpreter."""

import csv
import json
import os
import subprocess
import sys

import pytest
from helpers.commands import HOME
from helpers.recorded_run import make_run

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


SERVER = """
import json, os, sys
import gradscore.closed_form.cpu_kernels, gradscore.evaluation
from helpers import commands
run = commands.call
def call(interpret, *words):
    os.environ["TRITON_INTERPRET"] = interpret
    try:
        return run(*words)
    finally:
        print("triton" in sys.modules, file=sys.stderr)
commands.call = call
assert "triton" not in sys.modules
for line in sys.stdin:
    print(json.dumps(commands.forked(*json.loads(line))), flush=True)
"""
"""A process in which all is loaded but triton; it forks for each command."""


@pytest.fixture(scope="module")
def gradscore():
    """Return what runs a command where triton, if imported, knows whether to interpret."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HOME,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "CUDA_VISIBLE_DEVICES": "",
        },
    )

    def run(*words, interpret):
        server.stdin.write(json.dumps([interpret, *map(str, words)]) + "\n")
        server.stdin.flush()
        code, _, error = json.loads(server.stdout.readline())
        return code, error.splitlines()

    yield run
    server.communicate()


def column(path, name):
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("how", [(), ("-p", "2", "-T", "4"), ("--target", "one-hot")], ids=str)
def test_the_kernels_score_as_torch_does(gradscore, run, tmp_path, how):
    found = {}
    for backend in ("torch", "numba", "triton", "auto"):
        output = tmp_path / f"{backend}.csv"
        command = ("score", "--run", run, "--set", "noise", *how, "--backend", backend)
        command = (*command, "-o", output)
        code, errors = gradscore(*command, interpret="1")
        assert code == 0, errors
        assert errors[-1] == str(backend == "triton")
        found[backend] = column(output, "gradnorm")
    assert found["auto"] == found["numba"]
    assert found["numba"] == pytest.approx(found["torch"], rel=2e-6)
    assert found["triton"] == pytest.approx(found["torch"], rel=2e-5)
    assert len({*map(tuple, (found["torch"], found["numba"], found["triton"]))}) > 1


def test_evaluate_asks_them_too(gradscore, run, tmp_path):
    output = tmp_path / "table.csv"
    sets = ("--set", "digits", "--set", "noise")
    command = ("evaluate", "--run", run, *sets, "--backend", "triton", "-o", output)
    code, errors = gradscore(*command, interpret="1")
    assert code == 0, errors
    assert errors[-1] == "True"
    assert len(column(output, "auroc")) > 0


@pytest.mark.parametrize(
    ("words", "interpret", "message"),
    [
        ((), "0", "backend 'triton' can serve: it runs on CUDA, got a tensor on cpu"),
        (("--method", "msp"), "1", "question that backend 'triton' serves, gradnorm with layers"),
    ],
)
def test_where_they_cannot_serve_it_is_one_line(gradscore, run, words, interpret, message):
    command = ("score", "--run", run, "--backend", "triton", *words)
    code, errors = gradscore(*command, interpret=interpret)
    assert code == 1
    assert message in errors[0]
