"""GradNorm as a detector of pytorch-ood: their numbers, their sign, their cache."""

import pytest
import torch
from pytorch_ood.api import FeaturesDetector, ModelNotSetException
from pytorch_ood.benchmark import Benchmark
from pytorch_ood.detector import GradNorm as Theirs
from pytorch_ood.utils import GridSearch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradscore.interop.pytorch_ood import GradNorm


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(encoder, nn.Linear(8 * 36, 10)).eval()


IMAGES = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_it_equals_their_gradnorm_of_the_last_layers_weight(model, temperature):
    theirs = Theirs(model, param_filter=lambda name: name == "1.weight", temperature=temperature)
    ours = GradNorm(model[0], model[1].weight, model[1].bias, temperature=temperature)
    assert isinstance(ours, FeaturesDetector)
    torch.testing.assert_close(ours(IMAGES), theirs(IMAGES), rtol=1e-5, atol=0)
    features = model[0](IMAGES)
    assert torch.equal(ours.predict_features(features), ours.predict(IMAGES))
    assert not ours.predict_features(features).requires_grad


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.calls = encoder, 0

    def forward(self, images):
        self.calls += 1
        return self.encoder(images)


class Small(Benchmark):
    """Two small sets."""

    def train_set(self, **how):
        return None

    def test_sets(self, known=True, unknown=True):
        labels = torch.cat([torch.zeros(6), -torch.ones(6)]).long()
        return [TensorDataset(IMAGES, labels)]

    ood_names = ("Small",)


def test_their_cache_of_features_serves_it(model):
    encoder = Counting(model[0])
    detectors = [GradNorm(encoder, model[1].weight, model[1].bias, p=p) for p in (1.0, 2.0)]
    benchmark = Small()
    found = benchmark.evaluate(detectors, loader_kwargs={"batch_size": 12}, cache=True)
    assert encoder.calls == 1
    assert benchmark._supports_cached_features(detectors[0])
    assert len(found) == 2


def test_their_grid_search_tunes_it(model):
    data = TensorDataset(IMAGES, torch.cat([torch.zeros(6), -torch.ones(6)]).long())
    detector = GradNorm(model[0], model[1].weight, model[1].bias)
    best = GridSearch(detector, None, val_loader=DataLoader(data, batch_size=4)).run()
    assert best.keys() == {"p", "temperature"}
    assert (detector.p, detector.temperature) == (best["p"], best["temperature"])


def test_without_an_encoder_features_are_given(model):
    detector = GradNorm(None, model[1].weight)
    assert detector.predict_features(model[0](IMAGES)).shape == (12,)
    with pytest.raises(ModelNotSetException):
        detector.predict(IMAGES)
    assert repr(detector) == "GradNorm(p=1, temperature=1)"
