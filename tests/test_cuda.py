"""Norms on a CUDA device against plain autograd in float64 on the CPU."""

import copy
import math

import pytest
import torch
from torch import nn

from gradscore import gradient_norms
from gradscore.extraction.classifier import find_batch_size, float32_products, memory_for
from gradscore.objective import Objective
from gradscore.reference import one_backward_a_sample

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def make_model():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=4), nn.GroupNorm(2, 8), nn.PReLU(8)),
        *(nn.Flatten(2), nn.LayerNorm(196), nn.Linear(196, 4), nn.Flatten(), nn.Linear(32, 5)),
    )
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("batch", [1, 5])
def test_norms_are_those_of_a_cpu(p, batch):
    model, x = make_model(), torch.randn(batch, 3, 16, 16)
    double = copy.deepcopy(model).double()
    expected = one_backward_a_sample(double, x.double(), Objective(p))
    with float32_products("float32"):
        found = gradient_norms(model.cuda(), x.cuda(), p=p)
    assert set(found.rules.values()).isdisjoint({"reference"})
    torch.testing.assert_close(found.norms.cpu().double(), expected.norms, rtol=1e-4, atol=1e-6)


def test_the_batch_search_survives_the_end_of_memory():
    def compute(images):
        with memory_for(images):
            # A tenth of the device's memory for each image.
            tenth = torch.cuda.mem_get_info()[1] // 10
            torch.empty(len(images), tenth, dtype=torch.uint8, device="cuda")

    assert find_batch_size(compute, torch.rand(1, 1, 2, 2), torch.device("cuda")) <= 4
