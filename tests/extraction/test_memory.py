"""Memory that ends is named, and is no reason to go another, slower way in silence."""

import weakref

import pytest
import torch
from torch import nn

from gradscore import gradient_norms, graph
from gradscore.capture import gradients
from gradscore.errors import ModelError
from gradscore.extraction import classifier
from gradscore.extraction.classifier import OutOfMemory, find_batch_size, memory_for

CPU = torch.device("cpu")
IMAGE = torch.rand(1, 3, 2, 2)
SAYINGS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    MemoryError(),
]


@pytest.mark.parametrize(
    "error", [*SAYINGS, RuntimeError("GET was unable to find an engine to execute this")], ids=str
)
def test_memory_that_ends_is_named_with_the_batch_size(error):
    with pytest.raises(OutOfMemory, match="Out of memory with 7 images at once"):  # noqa: SIM117
        with memory_for(torch.empty(7, 1)):
            raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory")])
def test_other_errors_pass(error):
    with pytest.raises(type(error), match=str(error)), memory_for(torch.empty(7, 1)):
        raise error


class Product(nn.Module):
    """Its weight has no rule of its own, so that the generic one serves it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        return torch.einsum("bi,oi->bo", x, self.weight)


@pytest.mark.parametrize("error", SAYINGS, ids=str)
def test_the_generic_rule_does_not_go_on_sample_by_sample(error, monkeypatch):
    def full(function):
        raise error

    assert gradient_norms(Product().eval(), torch.randn(3, 6)).rules == {
        "weight": "generic (einsum)"
    }
    monkeypatch.setattr(gradients, "vmap", full)
    with pytest.raises(type(error)):
        gradient_norms(Product().eval(), torch.randn(3, 6))


def test_parameters_behind_a_derived_tensor_do_not_go_on_row_by_row(monkeypatch):
    made = (weight := torch.randn(3, 2, requires_grad=True)) * 2
    sources = {"weight": torch.autograd.graph.get_gradient_edge(weight)}

    def full(*args, is_grads_batched=False, **kwargs):
        if is_grads_batched:
            raise SAYINGS[1]
        raise AssertionError("no second way is tried")

    monkeypatch.setattr(graph.torch.autograd, "grad", full)
    with pytest.raises(torch.AcceleratorError):
        graph.pull_back(made, sources, torch.randn(5, 3, 2))


def test_a_second_forward_that_has_no_memory_is_no_model_of_one_batch_size():
    class Full(nn.Linear):
        def forward(self, x):
            if 1 < len(x) < 5:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x)

    with pytest.raises(torch.OutOfMemoryError):
        gradient_norms(Full(6, 4).eval(), torch.randn(5, 6))


@pytest.mark.parametrize(("fits", "found"), [(1, 1), (2, 1), (4, 2), (16, 8)])
def test_the_search_keeps_a_size_of_distance_to_the_end_of_memory(fits, found, monkeypatch):
    class Graph:
        """What a batch takes; weak references tell how long."""

    held, freed = [], []
    monkeypatch.setattr(
        classifier.torch.cuda, "empty_cache", lambda: freed.append([r() for r in held])
    )

    def compute(images):
        graph = Graph()
        graph.itself = graph
        with memory_for(images):
            if len(images) > fits:
                held.append(weakref.ref(graph))
                raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(classifier.time, "perf_counter", iter(range(99)).__next__)
    assert find_batch_size(compute, IMAGE, CPU) == found
    assert freed == [[None]]


def test_the_search_ends_where_a_model_takes_no_more_images():
    def compute(images):
        if len(images) > 4:
            raise ModelError("Expected at most 4 images.")

    assert find_batch_size(compute, IMAGE, CPU) <= 4


def test_what_does_not_take_one_image_is_told():
    def compute(images):
        with memory_for(images):
            raise SAYINGS[0]

    with pytest.raises(ModelError, match="with 1 images"):
        find_batch_size(compute, IMAGE, CPU)


def test_the_search_tries_images_of_which_none_is_another():
    seen = []
    state = torch.get_rng_state()
    find_batch_size(seen.append, IMAGE, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(seen) > 6
    for images in seen:
        assert len(images.unique(dim=0)) == len(images)
        assert (images - IMAGE).abs().max() < 1
