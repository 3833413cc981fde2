"""Parts and memory formats must not change what is computed."""

from contextvars import ContextVar

import pytest
import torch
from torch import nn

from gradscore import gradient_norms
from gradscore.errors import ModelError
from gradscore.network import batches
from gradscore.network.batches import memory_format, parts_of
from gradscore.reference import one_backward_a_sample

SEEN: ContextVar[list[tuple[int, bool]]] = ContextVar("seen")
"""What the networks have seen; a context variable is no part of their state."""
SEEN.set([])


class Pooled(nn.Module):
    """A small network that flattens as ``flatten`` does; its copies, too, say what they see."""

    def __init__(self, flatten=lambda x: x.flatten(1)):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(3))
        self.head, self.flatten = nn.Linear(32, 5), flatten

    def forward(self, x):
        SEEN.get().append((len(x), x.is_contiguous(memory_format=torch.channels_last)))
        return self.head(self.flatten(self.layer(x)))


def in_memory_order(x):
    """Flatten by how the entries lie in memory, which differs with the channels last."""
    return x.as_strided((len(x), 32), (32, 1))


def make(*args):
    torch.manual_seed(0)
    SEEN.get().clear()
    return Pooled(*args).eval(), torch.randn(5, 3, 8, 8)


LARGEST = 8 * 6 * 6 * 4
"""Bytes that the first layer's output takes for one image."""


@pytest.mark.parametrize("most", [1, 2, 5])
def test_parts_of_a_batch_answer_as_the_whole(most, monkeypatch):
    model, x = make()
    monkeypatch.setattr(batches, "RESULT_BYTES", (most + 1) * LARGEST - 1)
    sizes = [len(part) for part in parts_of(model, x, 1.0)]
    assert sizes == {1: [1] * 5, 2: [2, 2, 1], 5: [5]}[most]
    gradient_norms(model, x)
    SEEN.get().clear()
    found = gradient_norms(model, x)
    assert [size for size, _ in SEEN.get()] == sizes
    torch.testing.assert_close(found.norms, one_backward_a_sample(model, x).norms)


def test_parts_are_of_about_one_size(monkeypatch):
    model, x = make()
    monkeypatch.setattr(batches, "RESULT_BYTES", 4 * LARGEST)
    parts = parts_of(model, x, 1.0)
    assert [len(part) for part in parts] == [3, 2]
    assert torch.equal(torch.cat(parts), x)


@pytest.mark.parametrize(("layers", "last"), [("head.weight", True), ("all", False)])
def test_the_channels_come_last_where_few_parameters_are_asked_for(layers, last):
    model, x = make()
    found = gradient_norms(model, x, layers=layers)
    assert (5, last) in SEEN.get()
    assert (5, not last) not in SEEN.get()
    torch.testing.assert_close(found.norms, one_backward_a_sample(model, x, layers=layers).norms)


@pytest.mark.parametrize("images", [1, 5])
def test_the_channels_come_last_for_at_most_half_of_the_parameters(images):
    model, x = make()
    assert memory_format(model, x[:images], 0.5) is torch.channels_last
    assert memory_format(model, x[:images], 0.51) is torch.contiguous_format


@pytest.mark.parametrize("flatten", [lambda x: x.view(len(x), -1), in_memory_order])
def test_a_model_that_needs_the_channels_first_gets_them(flatten):
    model, x = make(flatten)
    given = x.contiguous(memory_format=torch.channels_last)
    found = gradient_norms(model, given, layers="head.weight")
    assert {last for size, last in SEEN.get() if size == 5} == {False}
    expected = one_backward_a_sample(model, x, layers="head.weight")
    torch.testing.assert_close(found.norms, expected.norms)


def test_a_model_that_has_no_use_for_it_keeps_the_channels_first():
    layers = (nn.Flatten(2), nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 4), nn.Flatten())
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), *layers, nn.Linear(32, 5)).eval()
    assert memory_format(model, torch.randn(5, 3, 8, 8), 0.0) is torch.contiguous_format


def test_a_model_is_tried_once():
    model, x = make()
    for _ in range(2):
        assert memory_format(model, x, 0.0) is torch.channels_last
    assert SEEN.get() == [(2, False), (2, True)]


def test_weights_made_in_the_forward_do_not_count():
    class Standardised(Pooled):
        def forward(self, x):
            SEEN.get().append((len(x), False))
            return nn.functional.linear(x.flatten(1), self.weight * 2)

    model, x = Standardised().eval(), torch.randn(5, 3, 8, 8)
    model.weight = nn.Parameter(torch.randn(1000, 192))
    assert batches._image_bytes(model, x[:2]) == 1000 * 4


def test_double_precision_keeps_the_channels_first():
    model, x = make()
    assert memory_format(model.double(), x.double(), 0.0) is torch.contiguous_format
    assert SEEN.get() == []


def test_a_model_in_train_mode_is_not_run():
    model, x = make()
    with pytest.raises(ModelError, match=r"got layer 'layer\.1'"):
        memory_format(model.train(), x, 0.0)
    assert SEEN.get() == []


def test_parts_differ_by_one_image_at_most(monkeypatch):
    model, _ = make()
    monkeypatch.setattr(batches, "RESULT_BYTES", 4 * LARGEST)
    sizes = [len(part) for part in parts_of(model, torch.randn(13, 3, 8, 8), 1.0)]
    assert sizes == [4, 3, 3, 3]


def test_a_replaced_part_is_tried_again():
    model, x = make()
    assert memory_format(model, x, 0.0) is torch.channels_last
    model.layer = nn.Sequential(*model.layer, nn.Identity())
    model.flatten = in_memory_order
    assert memory_format(model, x, 0.0) is torch.contiguous_format


def test_a_failed_trial_is_not_kept():
    model, x = make()
    flatten, model.flatten = model.flatten, lambda x: 1 / 0
    assert memory_format(model, x, 0.0) is torch.contiguous_format
    model.flatten = flatten
    assert memory_format(model, x, 0.0) is torch.channels_last


def test_one_image_is_not_tried_for_parts():
    model, x = make()
    assert len(parts_of(model, x[:1], 1.0)) == 1
    assert SEEN.get() == []


def test_trials_leave_the_images_as_they_are():
    model, x = make()
    model.register_forward_pre_hook(lambda module, args: args[0].mul_(2))
    before = x.clone()
    parts_of(model, x, 0.0)
    assert torch.equal(x, before)


def test_what_a_trial_makes_and_the_model_keeps_serves_the_backward():
    tables = []

    def scaled(x):
        if not tables:
            tables.append(torch.arange(1.0, 33.0))
        return x.flatten(1) * tables[0]

    model, x = make(scaled)
    with torch.inference_mode():
        found = gradient_norms(model, x)
    assert not tables
    torch.testing.assert_close(found.norms, one_backward_a_sample(model, x).norms)
