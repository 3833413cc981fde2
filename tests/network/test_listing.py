"""One walk through a model serves a whole call, and nothing that changes goes unnoticed by it."""

import gc
import weakref

import pytest
import torch
from helpers.small_models import hold_to_reference, images
from torch import nn
from torch.nn import functional as F

import gradscore as gs
from gradscore.errors import ModelError
from gradscore.network import hold_state, listing_of, state_of
from gradscore.network.facts import facts_of
from gradscore.reference import one_backward_a_sample


class Net(nn.Module):
    """A small network that changes itself in its forward as it is told to."""

    def __init__(self, change=None):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
        self.change = change
        self.double().eval()

    def forward(self, x):
        if self.change:
            self.change(self)
        return self.head(self.norm(self.body(x)).tanh())


class WithPart(nn.Linear):
    """A layer of another class, with a parameter more."""

    def __init__(self):
        super().__init__(6, 4)
        self.slope = nn.Parameter(torch.tensor(1.5))
        self.double()

    def forward(self, x):
        return super().forward(x) * self.slope


def rename(model):
    model.tail = model.head
    model.change = None
    del model.head
    model.forward = lambda x: model.tail(model.norm(model.body(x)).tanh())


def turned(model):
    model.head.__class__ = Turned


class Turned(nn.Linear):
    """A linear layer that turns its output around."""

    def forward(self, x):
        return -3 * super().forward(x)


BETWEEN = {
    "a module is replaced": lambda m: setattr(m, "head", WithPart()),
    "a weight is replaced": lambda m: setattr(m.head, "weight", nn.Parameter(images(4, 6))),
    "a weight is changed in place": lambda m: m.head.weight.data.mul_(3),
    "a buffer is replaced": lambda m: setattr(m.norm, "running_mean", images(6)),
    "a class is changed": turned,
    "a part is renamed": rename,
    "a parameter is frozen for good": lambda m: m.body.weight.requires_grad_(False),
    "a hook is added": lambda m: m.body.register_forward_hook(lambda _, args, out: out * 2),
    "a forward is replaced": lambda m: setattr(
        m.head, "forward", lambda x: F.linear(x, m.head.weight)
    ),
}


@pytest.mark.parametrize("change", BETWEEN)
def test_a_change_between_two_calls_is_seen_by_the_next(change):
    model, x = Net(), images(3, 5)
    for _ in range(2):
        gs.gradient_norms(model, x)
    BETWEEN[change](model)
    for _ in range(2):
        got, expected = gs.gradient_norms(model, x), one_backward_a_sample(model, x)
        assert got.parameters == expected.parameters == tuple(dict(model.named_parameters()))
        torch.testing.assert_close(got.norms, expected.norms, rtol=1e-10, atol=1e-12)


def test_train_mode_between_two_calls_is_refused_and_eval_mode_served_again():
    model, x = Net(), images(3, 5)
    expected = gs.gradient_norms(model, x).norms
    model.norm.train()
    with pytest.raises(ModelError, match="fixed statistics, got layer 'norm'"):
        gs.gradient_norms(model, x)
    with pytest.raises(ModelError, match="fixed statistics, got layer 'norm'"):
        gs.GradNorm(model)(x)
    model.norm.eval()
    assert torch.equal(gs.gradient_norms(model, x).norms, expected)


class Turning(Net):
    """A network that leaves its norm in train mode."""

    def forward(self, x):
        logits = super().forward(x)
        self.norm.training = True
        return logits


def test_a_flag_that_a_forward_leaves_turned_is_refused_by_the_next_call():
    model, x = Turning(), images(3, 5)
    score = gs.GradNorm(model)
    score(x)
    with pytest.raises(ModelError, match="fixed statistics, got layer 'norm'"):
        score(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_train_mode_of_a_scripted_part_is_refused_by_the_next_call():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.jit.script(nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5)))
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            return self.head(self.body(x))

    model, x = Holder().double().eval(), images(3, 5)
    for _ in range(2):
        gs.gradient_norms(model, x, layers="head.*")
    model.body.train()
    for call in (gs.GradNorm(model), lambda x: gs.gradient_norms(model, x, layers="head.*")):
        with pytest.raises(ModelError, match=r"active dropout, got layer 'body\.1'"):
            call(x)


def swap(model):
    model.head = nn.Sequential(model.head, nn.Tanh())


DURING = {
    "a module is replaced": swap,
    "a module is added": lambda m: m.add_module("more", nn.Dropout()),
    "a module is removed and added": lambda m: m.add_module("body", m._modules.pop("body")),
    "a buffer is added": lambda m: m.norm.register_buffer("seen", torch.ones(2)),
    "a buffer is replaced": lambda m: setattr(m.norm, "running_mean", m.norm.running_mean + 0.5),
    "a weight gets another name": lambda m: m.head.register_parameter("other", m.head.weight),
    "a hook is added": lambda m: m.head.register_forward_hook(lambda *_: None),
    "a hook is added to a new module": lambda m: (
        swap(m),
        m.head.register_forward_hook(lambda *_: None),
    ),
    "hooks are replaced": lambda m: setattr(m.head, "_forward_hooks", {}),
    "a flag is turned": lambda m: setattr(m.body, "training", True),
    "a class is changed and back": lambda m: setattr(m.head, "__class__", nn.Linear),
}


def parts_of(model):
    """Return all that a walk through a model shows, with the order of names."""
    found = []
    for name, module in model.named_modules():
        tensors = [*module._parameters.items(), *module._buffers.items()]
        found.append((name, type(module), id(module), [*vars(module)], module.training))
        found.append([(key, id(tensor)) for key, tensor in tensors])
        hooks = [(key, value) for key, value in vars(module).items() if "hooks" in key]
        found.append([(key, id(value), len(value)) for key, value in hooks])
    return found


@pytest.mark.parametrize("change", DURING)
def test_a_change_during_a_forward_is_undone_and_the_norms_are_those_of_autograd(change):
    model, x = Net(DURING[change]), images(3, 5)
    before = parts_of(model)
    for _ in range(2):
        hold_to_reference(model, x)
        assert parts_of(model) == before


def test_all_who_ask_within_a_call_get_one_listing():
    model = Net()
    with hold_state(model):
        listing = listing_of(model)
        assert listing_of(model) is listing
        with hold_state(model):
            assert listing_of(model) is listing
    assert listing_of(model) is not listing


def test_a_listing_made_from_an_outline_is_that_of_a_walk():
    model = Net()
    model.table, model.same = {"x": torch.ones(2)}, model.body
    for _ in range(2):
        with hold_state(model):
            listing = listing_of(model)
    assert facts_of(model).outline is not None
    assert list(listing.modules.items()) == list(model.named_modules())
    assert [(name, id(x)) for name, x in listing.parameters.items()] == [
        (name, id(x)) for name, x in model.named_parameters()
    ]
    assert [id(x) for x in listing.buffers] == [id(x) for x in model.buffers()]
    assert [(id(around), name) for around, name in listing.kept] == [(id(vars(model)), "table")]


class Walking(Net):
    """A network that lists a part of its parameters, as it is told to."""

    hidden = ()

    def named_parameters(self, *args, **kwargs):
        for name, parameter in super().named_parameters(*args, **kwargs):
            if not name.startswith(Walking.hidden):
                yield name, parameter


def test_a_model_with_a_walk_of_its_own_is_walked_through_in_every_call():
    model, x = Walking(), images(3, 5)
    every = tuple(dict(model.named_parameters()))
    assert gs.gradient_norms(model, x, layers="*.*").parameters == every
    assert facts_of(model).outline is None
    known = []
    model.named_modules = lambda *a, **k: (
        known.append(1),
        nn.Module.named_modules(model, *a, **k),
    )[1]
    gs.gradient_norms(model, x)
    before = len(known)
    gs.gradient_norms(model, x)
    assert len(known) > before


def test_an_outline_keeps_no_model_alive():
    model = Net()
    model.__dict__["parent"] = [model]
    for _ in range(2):
        gs.gradient_norms(model, images(3, 5))
    assert facts_of(model).outline is not None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("entries", [3, 70])
def test_every_layer_of_a_long_sequence_is_part_of_the_state(entries):
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(entries)]).eval()
    before = state_of(model)
    assert state_of(model) is before
    with torch.no_grad():
        model[entries - 2].weight.mul_(2)
    changed = state_of(model)
    assert changed is not before
    model[1] = nn.Linear(3, 3)
    assert state_of(model) is not changed


def test_a_layer_of_a_long_sequence_that_is_replaced_is_scored():
    torch.manual_seed(0)
    model, x = nn.Sequential(*[nn.Linear(3, 3) for _ in range(70)]).double().eval(), images(2, 3)
    gs.gradient_norms(model, x, layers="40.weight")
    model[40] = nn.Linear(3, 3).double()
    got = gs.gradient_norms(model, x, layers="40.weight").norms
    expected = one_backward_a_sample(model, x, layers="40.weight").norms
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-300)


RENAMED = {
    "module": lambda m: m._modules.update(tail=m._modules.pop("head")),
    "attribute": lambda m: vars(m).update(told=vars(m).pop("change")),
}


@pytest.mark.parametrize("what", RENAMED)
def test_another_name_is_another_state(what):
    model = Net()
    before = state_of(model)
    RENAMED[what](model)
    assert state_of(model) is not before


def test_a_forward_that_adds_a_part_for_good_is_served_with_it():
    # The head does not explain these logits, so that the forward is followed by the rules.
    class Growing(Net):
        def forward(self, x):
            if not hasattr(self, "scale"):
                self.register_buffer("scale", torch.tensor(2.0).double())
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(x) * (1 + 0 * self.calls)

    model, x = Growing(), images(3, 5)
    scores = gs.GradNorm(model)(x)
    expected = one_backward_a_sample(model, x, layers="head.weight").norms[:, 0]
    torch.testing.assert_close(scores, expected)
