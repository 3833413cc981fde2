"""The collector of cycles: paused while a batch is answered, and as it was after it."""

import gc

import pytest
import torch
from torch import nn

import gradscore as gs
from gradscore.network import collector, paused_collector, running_collector


@pytest.fixture(autouse=True)
def _as_before():
    before = gc.isenabled()
    yield
    (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_after_a_pause_what_it_was_before(enabled):
    (gc.enable if enabled else gc.disable)()
    with paused_collector():
        assert not gc.isenabled()
        with paused_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
        with running_collector():
            assert gc.isenabled() == enabled
        assert not gc.isenabled()
    assert gc.isenabled() == enabled


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("enabled", [True, False])
def test_it_is_as_before_when_a_pause_is_interrupted_as_it_begins_or_ends(
    monkeypatch, enabled, step
):
    class Interrupted:
        steps = 0

        def __enter__(self):
            self.steps += 1
            if self.steps == step == 2:
                raise KeyboardInterrupt

        def __exit__(self, *_):
            if self.steps == step == 1:
                self.steps += 1
                raise KeyboardInterrupt

    (gc.enable if enabled else gc.disable)()
    monkeypatch.setattr(collector, "_CHANGING", Interrupted())
    with pytest.raises(KeyboardInterrupt), paused_collector():
        pass
    assert gc.isenabled() == enabled
    assert not collector._pauses


def test_outside_of_a_pause_nothing_is_changed():
    gc.enable()
    with running_collector():
        assert gc.isenabled()
    assert gc.isenabled()


class Seen(nn.Module):
    """A classifier that notes whether the collector is running, and may raise."""

    def __init__(self):
        super().__init__()
        self.fc, self.seen, self.fails = nn.Linear(3, 2), [], False

    def forward(self, x):
        self.seen.append(gc.isenabled())
        if self.fails:
            raise RuntimeError("as asked")
        return self.fc(x)


def test_a_model_is_recorded_in_a_pause_that_ends_with_its_errors():
    gc.enable()
    model, x = Seen().eval(), torch.randn(4, 3)
    noted = []
    model.fc.register_forward_pre_hook(lambda *_: noted.append(gc.isenabled()))
    gs.gradient_norms(model, x)
    assert True in noted  # in the proofs of the first batch, on copies of the model
    del noted[:]
    gs.gradient_norms(model, x)
    assert noted == [False]
    assert gc.isenabled()
    model.fails = True
    with pytest.raises(gs.GradScoreError, match="as asked"):
        gs.gradient_norms(model, x)
    assert gc.isenabled()
