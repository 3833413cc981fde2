"""Outputs that are no logits: told of by the module and by the commands, and logits never."""

import pytest
import torch
from click.testing import CliRunner
from helpers.recorded_run import make_run
from torch import nn

import gradscore as gs
from gradscore.cli import cli
from gradscore.errors import GradScoreWarning, ModelError
from gradscore.outputs import ENOUGH, OutputWatch

IMAGES = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
TOLD = {
    "softmax": (nn.Softmax(dim=1), "its outputs are probabilities"),
    "sigmoid": (nn.Sigmoid(), "all its outputs lie between 0 and 1"),
}
LEFT = {
    "logits": nn.Identity(),
    "log-softmax": nn.LogSoftmax(dim=1),
    "cut-off": nn.Hardtanh(0, 1),
    "bounded": nn.Tanh(),
}


def net(after, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, classes), after).eval()


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("case", TOLD)
def test_the_module_tells_once(case, layers):
    after, message = TOLD[case]
    scorer = gs.GradNorm(net(after), layers=layers)
    with pytest.warns(GradScoreWarning, match=f"Sequential: {message}.*; return what enters"):
        first = scorer(IMAGES)
    assert torch.equal(scorer(IMAGES), first)  # a second warning would be an error here
    with pytest.warns(GradScoreWarning, match=message):
        gs.gradient_norms(net(after), IMAGES, layers=layers)


@pytest.mark.parametrize("case", LEFT)
def test_logits_are_never_told_of(case):
    gs.GradNorm(net(LEFT[case]))(IMAGES)
    gs.gradient_norms(net(LEFT[case]), IMAGES)


def test_small_batches_add_up_to_enough_outputs():
    watch = OutputWatch()
    rows = torch.rand(ENOUGH // 4, 4, generator=torch.Generator().manual_seed(0)) + 1e-6
    told = [watch.fault(row[None]) for row in rows]
    assert not any(told[:-1])
    assert "as those of a sigmoid do" in told[-1]
    assert OutputWatch().fault(rows[:5]) == ""
    watch = OutputWatch()
    assert watch.fault(rows[:10]) == watch.fault(rows[:1] + 1) == watch.fault(rows) == ""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_probabilities_show_in_every_type_and_batch(dtype):
    for batch, classes in ((1, 2), (1, 1000), (64, 10)):
        rows = torch.randn(batch, classes, generator=torch.Generator().manual_seed(1)) * 3
        assert "probabilities" in OutputWatch().fault(rows.softmax(1).to(dtype))
        assert OutputWatch().fault(rows.to(dtype)) == ""
    assert OutputWatch().fault(torch.zeros(0, 3, dtype=dtype)) == ""
    assert OutputWatch().fault(torch.full((2, 3), torch.nan, dtype=dtype)) == ""


def test_one_logit_is_refused_as_by_the_commands():
    model = net(nn.Identity(), classes=1)
    for layers in ("last", "all"):
        for call in (gs.GradNorm(model, layers=layers), lambda x: gs.gradient_norms(model, x)):
            with pytest.raises(ModelError, match="two or more classes, got one logit: return 0"):
                call(IMAGES)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a run for each kind of outputs, of which its file says nothing."""
    found = {}
    for case, (after, _) in {**TOLD, "logits": (nn.Identity(), "")}.items():

        def change(name, base, after=after):
            base["logits"] = after(torch.as_tensor(base["logits"])).numpy()

        found[case] = make_run(tmp_path_factory.mktemp(case) / "run", change=change)
    return found


@pytest.mark.parametrize("case", [*TOLD, "logits"])
@pytest.mark.parametrize("command", ["evaluate", "score", "compare"])
def test_the_commands_tell_in_one_line(runs, case, command):
    run = [str(runs[case])] if command == "compare" else ["--run", str(runs[case])]
    result = CliRunner().invoke(cli, [command, *run, "--method", "gradnorm"])
    assert result.exit_code == 0
    lines = [line for line in result.stderr.splitlines() if "outputs" in line]
    if case == "logits":
        assert lines == []
    else:
        (line,) = lines
        assert line.startswith(f"python:tests:drawn: {TOLD[case][1]}")

    quiet = CliRunner().invoke(cli, [command, *run, "--method", "gradnorm", "--quiet"])
    assert "outputs" not in quiet.stderr


def make_softmax():
    """Return a classifier that ends with a softmax, as its users write it."""
    model = net(nn.Softmax(dim=1))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), *model).eval()
    model.preprocessing = gs.create_model("digits").preprocessing
    return model


def test_verify_tells_in_one_line():
    options = ["--model", "python:test_probabilities:make_softmax", "--limit", "2", "-p", "1"]
    result = CliRunner().invoke(cli, ["verify", *options, "-p", "2"])
    assert result.exit_code == 0, result.output
    (line,) = (line for line in result.stderr.splitlines() if "probabilities, not" in line)
    assert line.startswith("Sequential: its outputs are probabilities")
