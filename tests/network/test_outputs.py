"""A tensor of logits, an object with logits or a mapping with logits; all else is refused."""

import re
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from helpers.by_vmap import per_sample_vmap
from torch import Tensor, nn

import gradscore as gs
from gradscore.errors import ModelError
from gradscore.extraction.replay import Tail, check_replay
from gradscore.layers.head import find_head
from gradscore.outputs import logits_of
from gradscore.reference import one_backward_a_sample

IMAGES = torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class ModelOutput(OrderedDict):
    """An ordered mapping whose entries are attributes too, as HuggingFace models return it."""

    def __init__(self, **entries):
        super().__init__(entries)
        for name, value in entries.items():
            setattr(self, name, value)


@dataclass
class Output:
    """A plain object with logits."""

    logits: Tensor
    loss: Tensor | None = None


Scripted = namedtuple("Scripted", ("logits", "aux_logits"))
TAKEN = {
    "tensor": lambda y: y,
    "model-output": lambda y: ModelOutput(loss=None, logits=y, hidden_states=(y,)),
    "dataclass": Output,
    "mapping": lambda y: {"features": y * 2, "logits": y},
    "named-tuple": lambda y: Scripted(y, y * 2),
}


class Net(nn.Module):
    """A small classifier that returns its logits in some form."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc, self.form = nn.Linear(16, 6), nn.Linear(6, 4), form

    def forward(self, x):
        return self.form(self.fc(self.body(x.flatten(1)).tanh()))


def net(form):
    return Net(form).double().eval()


@pytest.mark.parametrize("form", TAKEN)
def test_every_part_of_the_library_takes_it(form):
    plain, model = net(TAKEN["tensor"]), net(TAKEN[form])
    for layers in ("last", "all"):
        expected = gs.GradNorm(plain, layers=layers).logits_and_scores(IMAGES)
        got = gs.GradNorm(model, layers=layers).logits_and_scores(IMAGES)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert gs.GradNorm(model).logits_and_scores(IMAGES[:0])[0].shape == (0, 4)
    assert find_head(model, IMAGES) == find_head(plain, IMAGES)
    expected = one_backward_a_sample(plain, IMAGES).norms
    for way in (gs.gradient_norms, one_backward_a_sample, per_sample_vmap):
        torch.testing.assert_close(way(model, IMAGES).norms, expected)
    assert gs.verify(model, IMAGES).max_relative_error < 1e-9
    tail = Tail(model, "fc", (1, 4, 4))
    check_replay(
        tail, model.body(IMAGES.flatten(1)).tanh(), logits_of(model(IMAGES), 3), "float32"
    )


def test_a_table_that_such_a_model_fills_hides_no_weights():
    """The check that a model fills its tables anew compares logits, whatever they come in."""

    class Cached(Net):
        table = None

        def forward(self, x):
            if self.table is None:
                self.table = {}
            if "weight" not in self.table:
                self.table["weight"] = self.fc.weight * 2
            h = self.body(x.flatten(1)).tanh()
            return self.form(h @ self.table["weight"].T)

    model = Cached(TAKEN["model-output"]).double().eval()
    with torch.no_grad():
        model(IMAGES)
    expected = gs.gradient_norms(Cached(TAKEN["tensor"]).double().eval(), IMAGES).norms
    assert (expected[:, 2] > 0).all()
    torch.testing.assert_close(gs.gradient_norms(model, IMAGES).norms, expected)


def test_a_model_of_transformers_is_taken_as_it_is():
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}
    config = transformers.ViTConfig(**small, intermediate_size=8, image_size=8, patch_size=4)
    model = transformers.ViTForImageClassification(config).double().eval()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert find_head(model, images).closed_form
    scores = gs.GradNorm(model)(images)
    expected = one_backward_a_sample(model, images, layers="classifier.weight").norms[:, 0]
    torch.testing.assert_close(scores, expected)


REFUSED = {
    "tuple": (lambda y: (y, y * 2), "a tuple", "output[0]"),
    "list": (lambda y: [y[:, 0], y], "a list", "output[1]"),
    "mapping": (lambda y: {"out": y}, "a dict", "output['out']"),
    "object": (
        lambda y: namedtuple("Heads", "main")(y),
        "a Heads",
        "output[0]",
    ),
    "dataclass": (
        lambda y: type("Odd", (), {"__init__": lambda self: setattr(self, "main", y)})(),
        "a Odd",
        "output.main",
    ),
    "one-position": (
        lambda y: y[:, :, None, None],
        r"a torch.float64 tensor \[\d, 4, 1, 1\]",
        "output.flatten(1)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_is_refused_with_a_wrapper_that_works(case):
    form, got, way = REFUSED[case]
    model = net(form)
    calls = (
        lambda: gs.GradNorm(model)(IMAGES),
        lambda: gs.GradNorm(model, layers="all")(IMAGES),
        lambda: gs.gradient_norms(model, IMAGES),
        lambda: one_backward_a_sample(model, IMAGES),
        lambda: gs.verify(model, IMAGES),
    )
    for call in calls:
        with pytest.raises(ModelError, match=rf"logits \[\d, classes\] .*, got {got}") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert way in str(caught.value)
    lines = re.findall("`(.*?)`", str(caught.value))
    assert len(lines) == 3
    scope = {"torch": torch, "model": model}
    exec("\n".join(lines), scope)
    scores = gs.GradNorm(scope["model"])(IMAGES)
    assert torch.equal(scores, gs.GradNorm(net(TAKEN["tensor"]))(IMAGES))


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (torch.zeros(1, 3, 5), r"a torch.float32 tensor \[1, 3, 5\]"),
        (torch.zeros(3), r"a torch.float32 tensor \[3\]"),
        (torch.zeros(3, 0), r"a torch.float32 tensor \[3, 0\]"),
        (torch.zeros(2, 5), r"a torch.float32 tensor \[2, 5\]"),
        (torch.zeros(3, 5, dtype=torch.int64), r"a torch.int64 tensor \[3, 5\]"),
        (torch.zeros(3, 5, dtype=torch.complex64), r"a torch.complex64 tensor \[3, 5\]"),
        ({"logits": (1, 2)}, "a dict with a tuple as logits"),
        (Output(torch.zeros(3, 7, 5)), r"a Output with a torch.float32 tensor \[3, 7, 5\] as log"),
        (torch.zeros(3, 5).numpy(), "a ndarray"),
        (None, "a NoneType"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_where_no_logits_show_the_wrapper_leaves_a_gap(output, got):
    with pytest.raises(ModelError, match=rf"got {got}.*return \.\.\.`"):
        logits_of(output, 3)


def test_the_graph_is_kept():
    y = torch.zeros(2, 3, requires_grad=True)
    assert logits_of({"logits": y}, 2) is y
