"""``--backend``: the Triton kernels score a recorded run, here by the interpreter."""

import csv
import os
import subprocess
import sys

import pytest
from helpers.recorded_run import make_run

pytest.importorskip("triton", reason="triton is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


def gradscore(*words, interpret):
    """Run a command where triton, if imported, is told in time whether to interpret."""
    code = (
        "import sys\nfrom gradscore.cli import main\n"
        "try: main()\nfinally: print('triton' in sys.modules, file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": interpret, "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )


def column(path, name):
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("how", [(), ("-p", "2", "-T", "4"), ("--target", "one-hot")], ids=str)
def test_the_kernels_score_as_torch_does(run, tmp_path, how):
    found = {}
    for backend in ("torch", "triton", "auto"):
        output = tmp_path / f"{backend}.csv"
        command = ("score", "--run", run, *how, "--backend", backend, "-o", output)
        done = gradscore(*command, interpret="1")
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == str(backend == "triton")
        found[backend] = column(output, "gradnorm")
    assert found["auto"] == found["torch"] != found["triton"]
    assert found["triton"] == pytest.approx(found["torch"], rel=2e-5)


def test_evaluate_asks_them_too(run, tmp_path):
    output = tmp_path / "table.csv"
    command = ("evaluate", "--run", run, "--backend", "triton", "-o", output)
    done = gradscore(*command, interpret="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "True"
    assert len(column(output, "auroc")) > 0


@pytest.mark.parametrize(
    ("words", "interpret", "message"),
    [
        ((), "0", "backend 'triton' can serve: it runs on CUDA, got a tensor on cpu"),
        (("--method", "msp"), "1", "question that backend 'triton' serves, gradnorm with layers"),
    ],
)
def test_where_they_cannot_serve_it_is_one_line(run, words, interpret, message):
    command = ("score", "--run", run, "--backend", "triton", *words)
    done = gradscore(*command, interpret=interpret)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[0]
