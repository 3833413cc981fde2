"""A run as Python users read it."""

import numpy as np
import pytest
import torch
from helpers.recorded_run import SIZES, drawn_norms, drawn_set, make_run, tensors

import gradscore as gs
from gradscore.errors import InvalidArgument, RunError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return gs.Run(make_run(tmp_path_factory.mktemp("runs") / "run"))


def test_sets_are_named_with_role_and_rows(run):
    assert {name: entry.rows for name, entry in run.sets.items()} == SIZES
    assert run.sets["digits"].role == "id"


@pytest.mark.parametrize("field", ["features", "logits"])
def test_recorded_arrays_come_back_whole(run, field):
    got = getattr(run, field)("photos")
    assert got.dtype == torch.float32
    assert np.array_equal(got.numpy(), drawn_set("photos")[field])


def test_scores_are_the_closed_form_and_the_recorded_norms(run):
    x, f = tensors("noise")
    expected = gs.last_layer_score(x, f, p=2, temperature=4)
    got = run.score("noise", p=2, temperature=4)
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=0)
    got = run.score("noise", "gradnorm", layers="all")
    torch.testing.assert_close(got, torch.from_numpy(drawn_norms("noise")).double().sum(1))


def test_unknown_names_are_refused(run, tmp_path):
    for ask in (run.features, run.logits, run.score):
        with pytest.raises(InvalidArgument, match="Unknown set 'absent'; the run holds: digits"):
            ask("absent")
    with pytest.raises(InvalidArgument, match="msp does not honour p"):
        run.score("noise", "msp", p=2)
    with pytest.raises(RunError, match="No run in"):
        gs.Run(tmp_path / "absent")
