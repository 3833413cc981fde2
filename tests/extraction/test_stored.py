"""Features alone are kept, and every question is answered from them and the last layer."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.small_models import make_model

from gradscore.cli import cli
from gradscore.errors import DataError, InvalidArgument, RunError
from gradscore.recorded import extract
from gradscore.run import RunStore, check

SETS = {"digits": ("id", "digits:test"), "noise": ("ood", "digits:noise")}
SMALL = {"limit": 30, "batch_size": 8}
METHODS = ("gradnorm", "msp", "energy", "max_logit", "kl", "gen")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return extract("digits", SETS, tmp_path_factory.mktemp("whole"), layers="block4", **SMALL)


@pytest.mark.parametrize(
    ("store", "rtol"), [("features", 1e-5), ("features-float16", 5e-3)], ids=["float32", "float16"]
)
def test_scores_are_those_of_recorded_logits(whole, tmp_path, store, rtol):
    run = extract("digits", SETS, tmp_path, store=store, layers="block4", **SMALL)
    assert check(tmp_path) == []
    names = RunStore(tmp_path).sets["digits"].passes
    assert "logits" not in next(iter(RunStore(tmp_path).blocks("digits", ("features",))))
    assert run.features("digits").dtype == torch.float32
    torch.testing.assert_close(run.features("digits"), whole.features("digits"), rtol=rtol, atol=0)
    assert run.logits("digits").shape == whole.logits("digits").shape
    scale = float(whole.logits("digits").abs().max())
    for name in METHODS:
        got, expected = run.score("noise", name), whole.score("noise", name)
        bound = rtol * max(scale, float(expected.abs().max()))
        torch.testing.assert_close(got, expected, rtol=rtol, atol=bound)
    got, expected = (one.score("digits", "gradnorm", layers="block4") for one in (run, whole))
    torch.testing.assert_close(got, expected)
    sizes = [sum(f.stat().st_size for f in one.path.rglob("base/*.h5")) for one in (run, whole)]
    assert sizes[0] < sizes[1]
    apart = names["base"][0].settings["logits_apart"]
    assert 0 <= apart < rtol * scale


def test_a_pass_is_added_and_pictures_are_compared(whole, tmp_path):
    extract("digits", SETS, tmp_path, store="features", layers="last", **SMALL)
    extract("digits", SETS, tmp_path, store="features", layers="block4", **SMALL)
    (name,) = (one for one in RunStore(tmp_path).info.passes if one.startswith("norms"))
    got, expected = (
        np.concatenate([block[name] for block in RunStore(path).blocks("noise", (), [name])])
        for path in (tmp_path, whole.path)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    with pytest.raises(RunError, match="has stored 'features', got 'all'; give the same"):
        extract("digits", SETS, tmp_path, layers="last", **SMALL)


def test_the_command_line_says_how_far_the_logits_are(tmp_path):
    words = ["extract", "--run", tmp_path / "run", "--id", "digits=digits:test", "--limit", 9]
    words += ["--model", "digits", "--layers", "last", "--store", "features-float16"]
    result = CliRunner().invoke(cli, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert "Logits of the stored features: at most 0.00" in result.output
    assert RunStore(tmp_path / "run").info.stored == "features-float16"
    result = CliRunner().invoke(
        cli, ["extract", "--run", str(tmp_path / "run"), "--layers", "all"]
    )
    assert result.exit_code == 0, result.output


def test_what_cannot_be_stored_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="Expected store all or features or features-float1"):
        extract("digits", SETS, tmp_path / "a", store="logits", **SMALL)
    with pytest.raises(InvalidArgument, match=r"Expected store all, got 'features': the last lay"):
        extract(make_model(head=False), SETS, tmp_path / "b", store="features", **SMALL)
    model = make_model()
    with torch.no_grad():
        model[2].weight.mul_(1e6)
    with pytest.raises(DataError, match="beyond half precision's 65504; give `store='features'`"):
        extract(model, SETS, tmp_path / "c", store="features-float16", layers="last", **SMALL)
