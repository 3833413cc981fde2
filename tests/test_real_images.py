"""On real images and weights the digits of every score hold, and known accuracies are met.

The images and weights are found through the environment variable GRADSCORE_DATA.
"""

import math
import os
from pathlib import Path

import pytest
import torch
from torch.linalg import vector_norm

import gradscore as gs
from gradscore.data import open_set
from gradscore.layers.features import observe_features
from gradscore.layers.head import find_head

DATA = os.environ.get("GRADSCORE_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="GRADSCORE_DATA names no folder of real images")

ORDERS = (0.3, 0.5, 0.8, 1, 2, 3, 4, 5, 6, math.inf)
TEMPERATURES = (0.5, 1, 2, 32, 1024)
CASES = {
    "cifar": (
        "cifar:resnet20",
        "cifar10/resnet20_cifar10.safetensors",
        {},
        ["cifar10/id_cifar10_test", "cifar10/ood_gtsrb", "cifar10/ood_textures_dtd"],
        200,
    ),
    "imagenet": (
        "timm:mobilenetv2_100?pad_type=same",
        "imagenet/mobilenetv2_100_imagenet.safetensors",
        {"resize": 146, "crop": 128, "mean": 0.5, "std": 0.5, "interpolation": "bilinear"},
        ["imagenet/id_imagenet_samples", "imagenet/ood_flowers"],
        24,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def recorded(request):
    """Return a model's head, and its features and logits for real images, float32."""
    spec, weights, how, sets, count = CASES[request.param]
    model = gs.create_model(spec, Path(DATA, weights))
    prepare = model.preprocessing.with_overrides(**how)
    features, logits, head = [], [], None
    for name in sets:
        images = open_set(Path(DATA, name, "manifest.csv"), limit=count)
        batch = torch.stack([prepare(images[k]) for k in range(len(images))])
        head = head or find_head(model, batch[:2])
        with torch.no_grad(), observe_features(model, head) as observed:
            logits.append(model(batch))
        features.append(observed.features)
    return model.get_submodule(head.module), torch.cat(features), torch.cat(logits)


def autograd_norms(layer, features, temperature, p):
    """One backward a sample, of the loss as the paper writes it, in float64."""
    weight = layer.weight.detach().double().flatten(1).requires_grad_()
    bias = layer.bias.detach().double()
    norms = []
    for x in features.double():
        log_q = torch.log_softmax((weight @ x + bias) / temperature, dim=0)
        (gradient,) = torch.autograd.grad(-log_q.mean(), weight)
        norms.append(gradient.abs().amax() if p == math.inf else vector_norm(gradient, ord=p))
    return torch.stack(norms)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("p", ORDERS)
def test_float32_keeps_the_digits_of_float64(recorded, p, temperature):
    _, features, logits = recorded
    single = gs.last_layer_score(features, logits, p=p, temperature=temperature)
    double = gs.last_layer_score(features.double(), logits.double(), p=p, temperature=temperature)
    torch.testing.assert_close(single.double(), double, rtol=2e-5, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("p", ORDERS)
def test_one_hot_keeps_the_digits_of_the_off_class_sums(recorded, p, temperature):
    _, features, logits = recorded
    score = gs.last_layer_score(features, logits, p=p, temperature=temperature, target="one-hot")
    f, x = logits.double(), features.double()
    y = f.argmax(dim=1, keepdim=True)
    off = ((f - f.gather(1, y)) / temperature).exp().scatter(1, y, 0)
    others = off.sum(dim=1, keepdim=True)
    deviation = off.scatter(1, y, others) / (1 + others)
    expected = -vector_norm(x, ord=p, dim=1) * vector_norm(deviation, ord=p, dim=1) / temperature
    torch.testing.assert_close(score.double(), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("p", ORDERS)
def test_float64_equals_one_backward_a_sample(recorded, p, temperature):
    layer, features, _ = recorded
    features = features[::23].double()
    logits = features @ layer.weight.detach().double().flatten(1).T + layer.bias.detach().double()
    score = gs.last_layer_score(features, logits, p=p, temperature=temperature)
    expected = autograd_norms(layer, features, temperature, p)
    # At T = 1024 autograd itself cancels: its deviations are a thousandth of what it subtracts.
    tolerance = 1e-9 if temperature < 1024 else 1e-7
    torch.testing.assert_close(score, expected, rtol=tolerance, atol=0)


def test_cifar_accuracy_is_the_published_one(tmp_path):
    source = Path(DATA, "cifar10/id_cifar10_test/manifest.csv")
    weights = Path(DATA, "cifar10/resnet20_cifar10.safetensors")
    run = gs.extract(
        "cifar:resnet20", {"test": ("id", source)}, tmp_path, weights=weights, layers="last"
    )
    (block,) = run.store.blocks("test", fields=("logits", "label"))
    assert (block["logits"].argmax(axis=1) == block["label"]).mean() == pytest.approx(0.918)


def test_recorded_methods_are_their_equations_on_real_images(tmp_path):
    """Stored values against float64, an image at a time; a few signs of float32 may differ."""
    weights = Path(DATA, "cifar10/resnet20_cifar10.safetensors")
    sets = {"train": "id_cifar10_train_subset", "gtsrb": "ood_gtsrb"}
    sets = {name: (None, Path(DATA, "cifar10", at, "manifest.csv")) for name, at in sets.items()}
    how = {"layers": "last", "record": ("odin", "mahalanobis"), "epsilon": (0.0014,)}
    limit = {"train": 100, "gtsrb": 8}
    run = gs.extract(
        "cifar:resnet20", sets, tmp_path, weights=weights, fit="train", limit=limit, **how
    )
    (block,) = run.store.blocks("gtsrb", ("index",), ("odin-T1000-eps0.0014", "mahalanobis-train"))
    odin, stages = (torch.from_numpy(block[name]).double() for name in list(block)[1:])
    magnitude = run.store.info.passes["mahalanobis-train"].details["magnitude"]
    model = gs.create_model("cifar:resnet20", weights).double()
    train, gtsrb = (open_set(source, limit=limit[name]) for name, (_, source) in sets.items())

    def image(images, place):
        return model.preprocessing(images[place])[None].double().requires_grad_()

    seen = {}
    for layer in ("layer1", "layer2", "layer3"):
        model.get_submodule(layer).register_forward_hook(
            lambda _, __, output, layer=layer: seen.update({layer: output.mean(dim=(2, 3))})
        )
    with torch.no_grad():
        model(torch.cat([image(train, k) for k in range(100)]))
    learned, labels = dict(seen), torch.from_numpy(train.labels)
    for place in range(4):
        x = image(gtsrb, place)
        torch.softmax(model(x) / 1000, dim=1).max().log().backward()
        logits = model(x + 0.0014 * x.grad.sign())[0]
        torch.testing.assert_close(odin[place], logits, rtol=2e-3, atol=2e-3)
        for column, (layer, known) in enumerate(learned.items()):
            means = torch.stack([known[labels == c].mean(dim=0) for c in range(10)])
            centred = known - means[labels]
            precision = torch.linalg.pinv(centred.T @ centred / 100, hermitian=True)

            def distance(layer=layer, means=means, precision=precision):
                d = seen[layer] - means
                return 0.5 * ((d @ precision) * d).sum(dim=1).min()

            x = image(gtsrb, place)
            model(x)
            distance().backward()
            model(x.detach() - magnitude * x.grad.sign())
            torch.testing.assert_close(stages[place, column], -distance(), rtol=1e-2, atol=0)
