"""The module's scores are the closed form or the engine's norms, and the model stays as it was."""

import math

import pytest
import torch
from torch import nn

import gradscore as gs
from gradscore.errors import InvalidArgument, ModelError
from gradscore.reference import one_backward_a_sample


def small_net(head=None):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        *(head or [nn.Flatten(), nn.Linear(3, 4)]),
    ).eval()


MODELS = {
    "linear head": small_net(),
    "convolutional head": small_net([nn.Conv2d(3, 4, 1), nn.Flatten()]),
}
IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def autograd_score(model, image, names, p, temperature, target):
    """One backward for one sample: the norm over the chosen parameters together."""
    chosen = [parameter for name, parameter in model.named_parameters() if name in names]
    log_q = torch.log_softmax(model(image[None]) / temperature, dim=1)[0]
    loss = -log_q.mean() if target == "uniform" else -log_q[log_q.argmax()]
    grads = torch.autograd.grad(loss, chosen)
    norm = torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads]), ord=p)
    return norm if target == "uniform" else -norm


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("layers", ["last", "all", "0.*"])
@pytest.mark.parametrize(
    ("p", "temperature", "target"),
    [(1.0, 1.0, "uniform"), (2.0, 4.0, "one-hot"), (math.inf, 0.5, "uniform")],
)
def test_scores_equal_autograd_sample_by_sample(model, layers, p, temperature, target):
    model = model.double()
    scorer = gs.GradNorm(model, layers=layers, p=p, temperature=temperature, target=target)
    logits, scores = scorer.logits_and_scores(IMAGES.double())
    names = [name for name, _ in model.named_parameters()]
    weight = "5.weight" if "5.weight" in names else "4.weight"
    chosen = {"last": [weight], "all": names, "0.*": ["0.weight", "0.bias"]}[layers]
    expected = [
        autograd_score(model, image, chosen, p, temperature, target) for image in IMAGES.double()
    ]
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-9, atol=0)
    torch.testing.assert_close(logits.detach(), model(IMAGES.double()).detach())


@pytest.mark.parametrize("layers", ["last", "all"])
def test_the_model_is_left_as_it_was(layers):
    model = small_net()
    model[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scorer = gs.GradNorm(model, layers=layers)
    scorer(IMAGES)
    assert list(scorer.state_dict()) == [f"model.{name}" for name in before]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [True, False])
def test_every_grad_mode_gives_the_same_scores(layers, mode, frozen):
    model = small_net().requires_grad_(not frozen)
    expected = gs.GradNorm(small_net(), layers=layers)(IMAGES)
    with mode():
        scores = gs.GradNorm(model, layers=layers)(IMAGES)
    assert torch.equal(scores, expected)
    assert not scores.requires_grad


def test_one_forward_a_call_after_the_first():
    model = small_net()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    scorer = gs.GradNorm(model)
    scorer(IMAGES)
    calls.clear()
    scorer(IMAGES)
    assert len(calls) == 1


def test_a_replaced_head_is_found_anew():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    closed, by_rules = gs.GradNorm(model), gs.GradNorm(model, layers="3*")
    for scorer in (closed, by_rules):
        scorer(IMAGES)
    model[3] = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    all_names = [name for name, _ in model.named_parameters() if name.startswith("3")]
    for scorer, names in ((closed, ["3.2.weight"]), (by_rules, all_names)):
        expected = [autograd_score(model, x, names, 1.0, 1.0, "uniform") for x in IMAGES]
        torch.testing.assert_close(scorer(IMAGES), torch.stack(expected), rtol=1e-5, atol=1e-8)


def test_a_layer_in_train_mode_is_refused_by_name():
    model = small_net()
    scorer = gs.GradNorm(model)
    assert not scorer.training
    model[1].train()
    with pytest.raises(ModelError, match=r"got layer '.*1'"):
        scorer(IMAGES)


def test_a_head_without_closed_form_is_served_by_rules():
    model = nn.Sequential(*small_net(), nn.ReLU()).eval()
    scores = gs.GradNorm(model)(IMAGES)
    expected = [autograd_score(model, x, ["5.weight"], 1.0, 1.0, "uniform") for x in IMAGES]
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_an_empty_batch_has_no_scores(layers):
    logits, scores = gs.GradNorm(small_net(), layers=layers).logits_and_scores(IMAGES[:0])
    assert logits.shape == (0, 4)
    assert scores.shape == (0,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 0}, "p > 0, got p = 0"),
        ({"temperature": 0}, "temperature > 0, got 0"),
        ({"target": "both"}, "uniform or one-hot, got 'both'"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(InvalidArgument, match=message):
        gs.GradNorm(small_net(), **settings)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_what_is_not_finite_is_refused(layers):
    images = torch.randn(3, 1, 6, 6)
    scorer = gs.GradNorm(small_net(), layers=layers)
    with pytest.raises(InvalidArgument, match="finite"):
        scorer(images * math.nan)
    scorer(images)
    images[2] = math.nan
    with pytest.raises(InvalidArgument, match="row 2"):
        scorer(images)


def test_parameters_that_cannot_require_a_gradient_are_refused():
    with torch.inference_mode():
        model = small_net()
    with pytest.raises(ModelError, match="inference mode"):
        gs.gradient_norms(model, torch.randn(2, 1, 6, 6))


def test_unknown_layers_are_refused():
    with pytest.raises(InvalidArgument, match="block9"):
        gs.GradNorm(small_net(), layers="block9")(IMAGES)


def test_settings_are_shown():
    assert "layers='last', p=inf, temperature=2" in repr(
        gs.GradNorm(small_net(), p=math.inf, temperature=2)
    )


def test_a_hook_added_to_the_last_layer_is_seen():
    model = nn.Linear(6, 4).double().eval()
    x = torch.randn(5, 6, dtype=torch.float64)
    scorer = gs.GradNorm(model)
    scorer(x)
    model.register_forward_hook(lambda module, args, output: output * 3)
    expected = one_backward_a_sample(model, x, layers="weight").norms[:, 0]
    torch.testing.assert_close(scorer(x), expected)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_model_that_mixes_samples_is_not_scored(batch):
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x):
            return self.fc(x - x.mean(0))

    with pytest.raises(ModelError, match="do not depend on the rest of the batch"):
        gs.GradNorm(Mixing().eval())(torch.randn(batch, 6))
