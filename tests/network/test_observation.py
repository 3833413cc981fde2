"""Observers see the forwards of their thread, but for those that only find something out."""

import threading

import pytest
import torch
from torch import nn

from gradscore.network import dry_run, observe, unobserved


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def observed(model, run):
    """Return the sizes of the batches that an observer of the last layer saw."""
    seen = []
    with observe({"fc": model[2]}, lambda name, args, output: seen.append((name, len(output)))):
        run()
    assert not any(module._forward_hooks for module in model.modules())
    return [size for name, size in seen if name == "fc"]


def test_probes_are_not_observed():
    net, x = model(), torch.ones(3, 4)

    def run():
        with dry_run(net, x[:1]) as own:
            net(own)
        net(x)
        with unobserved():
            net(x[:2])

    assert observed(net, run) == [3]


def test_an_observer_within_a_probe_sees_it():
    net = model()
    with dry_run(net, torch.ones(2, 4)) as own:
        assert observed(net, lambda: net(own)) == [2]


def test_forwards_of_other_threads_are_not_observed():
    net = model()

    def run():
        other = threading.Thread(target=lambda: net(torch.ones(2, 4)))
        other.start()
        other.join()
        net(torch.ones(1, 4))

    assert observed(net, run) == [1]


def test_what_an_observer_returns_replaces_output_or_arguments():
    net, x = model(), torch.ones(2, 4)
    with observe({"fc": net[2]}, lambda *_: torch.zeros(2, 3)):
        assert torch.equal(net(x), torch.zeros(2, 3))
    with observe({"relu": net[1]}, lambda name, args, output: (args[0] * 0,), inputs=True):
        assert torch.equal(net(x), net[2].bias.expand(2, 3))


def test_hooks_are_removed_after_an_error():
    net = model()
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        observe({"fc": net[2]}, lambda *_: None),
    ):
        net(torch.ones(2, 7))
    assert not net[2]._forward_hooks
