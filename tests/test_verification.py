"""Verification tells right rules from wrong ones."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradscore import verification
from gradscore.closed_form import last_layer_score
from gradscore.errors import InvalidArgument, ModelError
from gradscore.rules import RULES, Rule
from gradscore.verification import verify


def model_and_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    return model.eval(), torch.randn(3, 1, 4, 4)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("target", ["uniform", "one-hot"])
def test_right_rules_pass(p, target):
    model, images = model_and_images()
    found = verify(model, images, p=p, target=target)
    assert found.max_relative_error < 1e-9
    assert found.closed_form_error is not None
    assert found.rules["3.weight"] == "linear"
    assert set(found.errors) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    assert model[0].weight.dtype == torch.float32


def test_scripted_models_and_indices_are_verified():
    model, images = model_and_images()
    with pytest.warns((DeprecationWarning, FutureWarning)):
        scripted = torch.jit.script(model)
    assert verify(scripted, images).max_relative_error < 1e-9
    tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)).eval()
    assert verify(tokens, torch.randint(0, 9, (2, 3))).max_relative_error < 1e-9


def test_an_empty_batch_verifies_nothing():
    model, images = model_and_images()
    with pytest.raises(InvalidArgument, match="at least one image"):
        verify(model, images[:0])


def test_a_wrong_rule_is_found(monkeypatch):
    def doubled(call, argument, grad):
        return 2 * grad

    monkeypatch.setitem(RULES, (F.linear, "bias"), Rule("wrong", doubled))
    found = verify(*model_and_images())
    assert found.worst == "3.bias"
    assert found.errors["3.bias"] == pytest.approx(1.0)
    assert found.max_relative_error == pytest.approx(1.0)
    assert found.rules["3.bias"] == "wrong"


def test_where_the_closed_form_does_not_hold_the_reason_is_told():
    model, images = model_and_images()
    found = verify(nn.Sequential(model, nn.ReLU()).eval(), images)
    assert found.closed_form_error is None
    assert found.closed_form_reason


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_models_that_keep_computed_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)).eval()
    for _ in range(2):
        assert verify(model, torch.randn(2, 4)).max_relative_error < 1e-9


def test_a_wrong_closed_form_is_the_worst(monkeypatch):
    def tripled(features, logits, **how):
        return 3 * last_layer_score(features, logits, **how)

    monkeypatch.setattr(verification, "last_layer_score", tripled)
    found = verify(*model_and_images())
    assert found.worst == "closed form"
    assert found.max_relative_error == pytest.approx(2.0)


def test_a_gradient_that_is_zero_on_paper_is_no_error():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.query, self.key, self.head = (
                nn.Linear(64, 64),
                nn.Linear(64, 64),
                nn.Linear(64, 3),
            )

        def forward(self, x):
            weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
            return self.head((weights @ x).mean(1))

    found = verify(Attending().eval(), torch.randn(2, 200, 64))
    assert found.errors["key.bias"] < 1e-8


def test_images_that_the_model_cannot_take_are_told():
    model, _ = model_and_images()
    with pytest.raises(ModelError, match="Expected a model that takes"):
        verify(model, torch.randn(2, 1, 7, 7))


def test_one_image_is_told_what_it_cannot_show():
    model, images = model_and_images()
    assert verify(model, images).caution == ""
    assert (
        "one image does not show whether samples depend on each"
        in verify(model, images[:1]).caution
    )


@pytest.mark.parametrize("copied", [True, False])
def test_a_model_is_converted_and_put_back(copied):
    model, images = model_and_images()
    model.lock = None if copied else threading.Lock()
    before = [(x.data_ptr(), x.tolist()) for x in model.parameters()]
    found = verify(model, images)
    assert found.max_relative_error < 1e-12
    with pytest.raises(ModelError, match="Expected a model that takes"):
        verify(model, torch.randn(2, 1, 7, 7))
    assert [(x.data_ptr(), x.tolist()) for x in model.parameters()] == before
    assert {x.dtype for x in model.parameters()} == {torch.float32}


def test_models_of_one_batch_size_and_models_in_closures():
    model, images = model_and_images()

    class Wrapped(nn.Module):
        def __init__(self, run):
            super().__init__()
            self.model, self.run = model, run

        def forward(self, x):
            return self.run(x)

    assert verify(Wrapped(lambda x: model(x.view(3, 1, 4, 4))).eval(), images).total_error < 1e-12
    found = verify(Wrapped(lambda x: model(x)).eval(), images)
    assert found.max_relative_error < 1e-12
    assert found.rules["model.0.weight"] == "conv"


def test_complex_weights_are_verified_in_double_precision():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(5, 3, dtype=torch.complex64)

        def forward(self, x):
            return self.fc(x * (1 + 2j)).abs()

    found = verify(Complex().eval(), torch.randn(2, 5))
    assert found.max_relative_error < 1e-12


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_every_mode_will_do(mode):
    model, images = model_and_images()
    with mode():
        assert verify(model, images + 0).max_relative_error < 1e-9


def test_a_small_part_of_a_gradient_is_held_to_itself(monkeypatch):
    def doubled(call, argument, grad):
        return 2 * grad

    monkeypatch.setitem(RULES, (F.linear, "bias"), Rule("wrong", doubled))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    found = verify(model, 1e4 * torch.rand(2, 4), temperature=1e5)
    assert found.errors["0.bias"] == pytest.approx(1.0)
    assert found.total_error < 1e-3


def test_another_precision_may_be_asked_for():
    model, images = model_and_images()
    assert 1e-12 < verify(model, images, dtype=torch.float32).max_relative_error < 1e-4


def test_gradients_that_the_user_keeps_stay():
    model = nn.Linear(4, 3).eval()
    model.weight.grad = torch.ones(3, 4)
    verify(model, torch.randn(4, 4))
    assert torch.equal(model.weight.grad, torch.ones(3, 4))
