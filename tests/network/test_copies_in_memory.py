"""The check of a model copies it; little more than one copy is held at a time."""

import weakref

import pytest
import torch
from helpers.small_models import images
from torch import nn

from gradscore.errors import ModelError
from gradscore.network import check_independence, dry_run, independence
from gradscore.network.facts import facts_of


class Clamping(nn.Linear):
    """A layer that changes its weight in each forward, and leaves no version of it behind."""

    def forward(self, x):
        self.weight.data.clamp_(-0.1, 0.1)
        return super().forward(x)


class Mixing(nn.Linear):
    """A layer that takes the mean of the batch off."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


def test_one_copy_is_freed_before_the_next_is_made(monkeypatch):
    made = []

    def copy(*arguments):
        assert all(reference() is None for reference in made)
        double = make(*arguments)
        made.append(weakref.ref(double.weight))
        return double

    make = independence.float64_copy
    monkeypatch.setattr(independence, "float64_copy", copy)
    model = Mixing(6, 4).eval()
    with pytest.raises(ModelError, match="do not depend on the rest of the batch"):
        check_independence(model, images(3, 6).float(), [model.weight])
    assert len(made) == 2


@pytest.mark.parametrize(("kind", "changed"), [(nn.Linear, 0), (Clamping, 1)])
def test_a_copy_keeps_only_parameters_that_forwards_of_the_model_change(kind, changed):
    model, x = nn.Sequential(nn.Linear(6, 5), kind(5, 4)).eval(), images(3, 6)
    assert facts_of(independence.float64_copy(model, ())).changed_parameters is None
    with dry_run(model, x.float()) as own:
        model(own)
    double = independence.float64_copy(model, ())
    expected = [double[1].weight][:changed]
    assert [*facts_of(double).changed_parameters.values()] == expected
    before = [parameter.detach().clone() for parameter in double.parameters()]
    with dry_run(double, x) as own:
        double(own)
    assert all(map(torch.equal, double.parameters(), before))


@pytest.mark.parametrize("shape", [(), (7,), (7, 3), (2, 5, 3), (0, 3)])
def test_parameters_are_moved_piece_by_piece_each_value_by_a_share_of_its_own(shape, monkeypatch):
    monkeypatch.setattr(independence, "PIECE", 6)
    model = nn.ParameterList([torch.full(shape, 2.0), torch.zeros(shape), torch.ones(3)])
    moved, zero, left = independence.float64_copy(model, [id(model[0]), id(model[1])])
    shares = torch.cat([(moved.flatten() - 2) / 2, zero.flatten() / 0.1])
    assert len(shares.unique()) == len(shares)
    assert all(0 < abs(share) < 0.06 for share in shares.tolist())
    assert torch.equal(left, torch.ones(3).double())
