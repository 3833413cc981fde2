"""Our numbers beside the authors' conventions: scale, sign, and where the two part.

Each reference is written here from the paper's equations, or from what the released code does, in
plain autograd and float64, one image at a time.
"""

import math

import numpy as np
import pytest
import torch
from helpers.recorded_run import make_run, tensors
from torch import nn

import gradscore as gs
from gradscore.methods import ScoreSpec
from gradscore.metrics import fpr95
from gradscore.run import RunStore
from gradscore.scoring import score_sets

CLASSES = 7
ORDERS = (0.3, 0.5, 0.8, 1.0, 2.0, 3.0, 6.0, math.inf)
TEMPERATURES = (0.5, 1.0, 2.0, 1024.0)


def network(head):
    """Return a small classifier, with a linear head or, as the authors' BiT, a 1x1 convolution."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    if head == "linear":
        layers = [*stem, nn.Flatten(), nn.Linear(8, CLASSES)]
    else:
        layers = [*stem, nn.Conv2d(8, CLASSES, 1), nn.Flatten()]
    return nn.Sequential(*layers).double().eval()


def images():
    rng = torch.Generator().manual_seed(1)
    return 3 * torch.randn(5, 3, 9, 9, generator=rng, dtype=torch.float64)


def last_weight(model):
    return [parameter for parameter in model.parameters() if parameter.ndim > 1][-1]


def norms_one_by_one(model, loss, p=1.0):
    """Return the p-norm of the last weight's gradient of ``loss(logits [C])``, image by image."""
    norms = []
    for image in images():
        (gradient,) = torch.autograd.grad(loss(model(image[None])[0]), last_weight(model))
        norms.append(p_norm(gradient.flatten(), p))
    return torch.stack(norms)


def p_norm(x, p):
    return x.abs().max() if p == math.inf else x.abs().pow(p).sum() ** (1 / p)


def divergence(logits, temperature):
    """KL(u || softmax(f / T)), Eq. 5, with the entropy of u that has no gradient."""
    log_q = torch.log_softmax(logits / temperature, dim=0)
    return (-math.log(CLASSES) - log_q).mean()


WAYS = {
    "module": lambda model, **how: gs.GradNorm(model, **how)(images()),
    "norms": lambda model, **how: gs.gradient_norms(model, images(), layers="last", **how).group(
        "last"
    ),
}
ways = pytest.mark.parametrize("ours", WAYS.values(), ids=WAYS.keys())
heads = pytest.mark.parametrize("head", ["linear", "convolution"])


@ways
@heads
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_released_code_gives_classes_times_our_value(head, temperature, ours):
    model = network(head)
    # Its loss sums over the classes with targets of one, where Eq. 5 has 1 / C.
    theirs = norms_one_by_one(model, lambda f: -torch.log_softmax(f / temperature, 0).sum())
    got = ours(model, temperature=temperature)
    torch.testing.assert_close(CLASSES * got, theirs, rtol=1e-9, atol=0)


@ways
@heads
@pytest.mark.parametrize("p", ORDERS)
def test_equal_the_gradient_of_the_divergence_for_every_order(head, p, ours):
    model = network(head)
    expected = norms_one_by_one(model, lambda f: divergence(f, 2.0), p)
    torch.testing.assert_close(ours(model, p=p, temperature=2.0), expected, rtol=1e-9, atol=0)


@heads
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_one_hot_score_is_minus_the_norm_for_the_predicted_class(head, temperature):
    model = network(head)
    loss = lambda f: -torch.log_softmax(f / temperature, 0)[f.argmax()]  # noqa: E731
    got = gs.GradNorm(model, target="one-hot", temperature=temperature)(images())
    torch.testing.assert_close(got, -norms_one_by_one(model, loss), rtol=1e-9, atol=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunStore(make_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("p", ORDERS)
def test_a_runs_score_is_the_product_of_its_factors(run, p, temperature):
    how = {"p": p, "temperature": temperature}
    asked = [ScoreSpec("u", p=p), ScoreSpec("v", **how), ScoreSpec("gradnorm", **how)]
    u, v, score = score_sets(run, ["noise"], asked)["noise"].columns.values()
    _, logits = tensors("noise")
    np.testing.assert_allclose(score, u * v / (logits.shape[1] * temperature), rtol=1e-12)


HIGHER_IS_ID = {
    "gradnorm": (2.0, 1.0),
    "u": (2.0, 1.0),
    "v": (1.0, 3.0),
    "kl": (1.0, 3.0),
    "msp": (1.0, 3.0),
    "max_logit": (1.0, 3.0),
    "energy": (1.0, 3.0),
    "odin": (1.0, 3.0),
}


@pytest.mark.parametrize(("method", "scales"), HIGHER_IS_ID.items(), ids=HIGHER_IS_ID.keys())
def test_larger_features_or_sharper_logits_score_higher(tmp_path, method, scales):
    def sharpen(name, arrays):
        arrays["features"][1] = scales[0] * arrays["features"][0]
        arrays["logits"][:2] = [[2.0, 0, 0, 0, 0], [2.0 * scales[1], 0, 0, 0, 0]]

    run = RunStore(make_run(tmp_path / "run", change=sharpen))
    (column,) = score_sets(run, ["digits"], [ScoreSpec(method)])["digits"].columns.values()
    assert column[1] > column[0]


def nearest_fpr95(ids, oods):
    """FPR at the threshold that accepts the share of ID nearest to 95%, as the authors take it."""
    thresholds = np.unique(ids)
    accepted = np.array([(ids >= threshold).mean() for threshold in thresholds])
    return (oods >= thresholds[np.abs(accepted - 0.95).argmin()]).mean()


def test_fpr95_is_the_authors_where_a_threshold_accepts_just_95_percent():
    rng = np.random.default_rng(0)
    ids, oods = rng.normal(1, 1, 400), rng.normal(0, 1, 300)
    assert fpr95(ids, oods) == nearest_fpr95(ids, oods)


def test_fpr95_parts_from_the_authors_where_the_nearest_threshold_accepts_fewer():
    ids = np.repeat([0.0, 1.0], [6, 94])  # 94% or all of ID, nothing between
    oods = np.array([0.5])
    assert (nearest_fpr95(ids, oods), fpr95(ids, oods)) == (0, 1)
