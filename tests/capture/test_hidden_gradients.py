"""Gradients that reach a parameter by a way that no recorded call shows are right, or refused."""

import dataclasses
import functools
import threading
import types

import pytest
import torch
from helpers.small_models import Model, images
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradscore import GradNorm
from gradscore.engine import gradient_norms
from gradscore.errors import ModelError
from gradscore.layers.head import find_head
from gradscore.network import force_eager
from gradscore.reference import one_backward_a_sample

SHAPES = {"w": (5, 5), "u": (4, 5)}


class Recomputing(torch.autograd.Function):
    """Run a function without a graph, and again with one in the backward."""

    @staticmethod
    def forward(ctx, run, x, anchor):
        ctx.run = run
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            ctx.run(x).backward(grad)
        return None, x.grad, None


def recomputing(m, x):
    h = Recomputing.apply(lambda h: F.linear(h, m.w).tanh(), F.linear(x, m.v), m.u)
    return F.linear(h, m.u)


def recomputing_beside_a_recorded_call(m, x):
    h = F.linear(x, m.v)
    return (
        F.linear(Recomputing.apply(lambda h: F.linear(h, m.w).tanh(), h, m.u), m.u)
        + h @ m.w.t()[:, :4]
    )


class Clipping(torch.autograd.Function):
    """An identity that bounds the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad.clamp(-0.01, 0.01)


def clipping(m, x):
    return F.linear(Clipping.apply(F.linear(x, m.w).tanh()), m.u)


def overloads(m, x):
    h = F.linear(x, m.w)
    torch.ops.aten.add_.Tensor(h, m.b)
    torch.ops.aten.mul_.Tensor(h, m.s)
    return F.linear(h.tanh(), m.u)


def packets(m, x):
    h = torch.ops.aten.linear(x, m.w)
    torch.ops.aten.add_(h, m.b)
    return F.linear(torch.ops.aten.mul(h, m.s).tanh(), m.u)


HIDDEN = {
    "recomputing": (recomputing, {**SHAPES, "v": (5, 5)}),
    "beside": (recomputing_beside_a_recorded_call, {**SHAPES, "v": (5, 5)}),
    "clipping": (clipping, SHAPES),
    "overloads": (overloads, {**SHAPES, "b": (5,), "s": (5,)}),
    "packets": (packets, {**SHAPES, "b": (5,), "s": (5,)}),
}


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_gradients_equal_the_reference(name, batch):
    forward, shapes = HIDDEN[name]
    model, x = Model(forward, **shapes), images(batch, 5)
    got = gradient_norms(model, x, p=2).norms
    for row, image in zip(got, x, strict=True):
        assert_plain(model, image, row)
    assert got.min() > 0
    for name in shapes:
        alone = gradient_norms(model, x, layers=[name], p=2).norms[:, 0]
        torch.testing.assert_close(alone, got[:, list(shapes).index(name)], rtol=1e-10, atol=0)


def assert_plain(model, image, row):
    """Compare with one plain backward of ``KL(u || softmax(f))``."""
    model.zero_grad()
    F.log_softmax(model(image[None].clone().requires_grad_()), dim=1).mean(
        1
    ).neg().sum().backward()
    expected = [0.0 if p.grad is None else float(p.grad.norm()) for p in model.parameters()]
    torch.testing.assert_close(row, torch.tensor(expected).to(row), rtol=1e-6, atol=1e-12)


def listed(trainable):
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weights = [nn.Parameter(torch.randn(5, 5).double(), requires_grad=trainable)]
            self.head = nn.Linear(5, 4).double()

        def forward(self, x):
            return self.head(F.linear(x, self.weights[0]).tanh())

    return Listed().eval()


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("layers", ["all", "head.weight"])
def test_parameters_that_the_model_does_not_list_are_refused(trainable, layers):
    with pytest.raises(ModelError, match=r"nn.Parameter \[5, 5\].*parameters\(\) does not list"):
        gradient_norms(listed(trainable), images(3, 5), layers=layers)


@pytest.mark.parametrize("layers", ["all", "head.weight"])
def test_trainable_tensors_that_are_no_parameters_are_refused(layers):
    model = listed(trainable=True)
    model.weights[0] = model.weights[0].detach().requires_grad_()
    with pytest.raises(ModelError, match=r"a trainable tensor \[5, 5\].*parameters\(\) does not"):
        gradient_norms(model, images(3, 5), layers=layers)
    model.weights[0].requires_grad_(False)
    assert gradient_norms(model, images(3, 5), layers=layers).norms.isfinite().all()


def swapped(make, device):
    """Return a model whose first layer gets its weights by hooks, as offloading does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 4)).double().eval()
    layer, saved = model[0], {n: p.detach().clone() for n, p in model[0].named_parameters()}
    empty = {n: nn.Parameter(torch.empty_like(p, device=device)) for n, p in saved.items()}
    layer._parameters.update(empty)

    def load(module, args):
        module._parameters.update({n: make(value) for n, value in saved.items()})

    def unload(module, args, output):
        module._parameters.update(empty)

    layer.register_forward_pre_hook(load)
    layer.register_forward_hook(unload)
    return model


@pytest.mark.parametrize("make", [nn.Parameter, torch.clone], ids=["parameter", "tensor"])
@pytest.mark.parametrize("layers", ["all", "0.weight"])
def test_parameters_on_the_meta_device_are_refused(make, layers):
    with pytest.raises(ModelError, match=r"'0\.weight' on the meta device"):
        gradient_norms(swapped(make, "meta"), images(3, 5), layers=layers)


@pytest.mark.parametrize("make", [nn.Parameter, torch.clone], ids=["parameter", "tensor"])
@pytest.mark.parametrize("layers", ["all", "0.weight"])
def test_parameters_swapped_in_for_the_forward_are_refused(make, layers):
    with pytest.raises(ModelError, match="register"):
        gradient_norms(swapped(make, "cpu"), images(3, 5), layers=layers)


@dataclasses.dataclass
class Holder:
    """Keep a table."""

    table: object = None


class Slots:
    """Keep a table, without a dictionary of attributes."""

    __slots__ = ("table",)

    def __init__(self):
        self.table = None


KEPT = {}


@functools.lru_cache
def table_of(weight):
    return weight.exp()


def in_attribute(make):
    def build():
        holder = make()

        def forward(m, x):
            if m.holder.table is None:
                m.holder.table = m.w.exp()
            return F.linear(F.linear(x, m.holder.table).tanh(), m.u)

        model = Model(forward, **SHAPES)
        model.holder = holder
        return model

    return build


def in_closure():
    kept = None

    def forward(m, x):
        nonlocal kept
        if kept is None:
            kept = m.w.exp()
        return F.linear(F.linear(x, kept).tanh(), m.u)

    return Model(forward, **SHAPES)


def in_module_level_dict():
    KEPT.clear()

    def forward(m, x):
        if "w" not in KEPT:
            KEPT["w"] = m.w.exp()
        return F.linear(F.linear(x, KEPT["w"]).tanh(), m.u)

    return Model(forward, **SHAPES)


def in_lru_cache():
    table_of.cache_clear()
    return Model(lambda m, x: F.linear(F.linear(x, table_of(m.w)).tanh(), m.u), **SHAPES)


CACHES = {
    "namespace": in_attribute(lambda: types.SimpleNamespace(table=None)),
    "dataclass": in_attribute(Holder),
    "slots": in_attribute(Slots),
    "closure": in_closure,
    "lru_cache": in_lru_cache,
    "module level": in_module_level_dict,
}


@pytest.mark.parametrize("before", [None, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("name", CACHES)
def test_weights_kept_from_a_forward_before_are_right_or_refused(name, before):
    model, x = CACHES[name](), images(3, 5)
    if before is not None:
        with before():
            model(x)
    for _ in range(2):
        try:
            got = gradient_norms(model, x, p=2).norms
        except ModelError:
            continue
        fresh = Model(lambda m, x: F.linear(F.linear(x, m.w.exp()).tanh(), m.u), **SHAPES)
        expected = gradient_norms(fresh, x, p=2).norms
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=0)


def test_a_single_number_kept_of_weights_is_refused():
    def forward(m, x):
        if m.holder.table is None:
            m.holder.table = m.w.norm()
        return F.linear(x * m.holder.table, m.u)

    model = Model(forward, **SHAPES)
    model.holder = types.SimpleNamespace(table=None)
    with torch.no_grad():
        model(images(3, 5))
    with pytest.raises(ModelError, match="may have been made of it before"):
        gradient_norms(model, images(3, 5))


def checkpointed(reentrant, first=True):
    def forward(m, x):
        block = lambda h: F.linear(F.linear(h, m.w).tanh(), m.v).tanh()  # noqa: E731
        h = x if first else F.linear(x, m.b)
        return F.linear(checkpoint(block, h, use_reentrant=reentrant), m.u)

    return Model(forward, **SHAPES, v=(5, 5), b=(5, 5))


@pytest.mark.parametrize("layers", ["all", "w", "v", "u", "w,u"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_are_as_if_they_were_not(reentrant, first, layers):
    model = checkpointed(reentrant, first)
    got = gradient_norms(model, images(3, 5), layers=layers)

    def plain(m, x):
        h = x if first else F.linear(x, m.b)
        return F.linear(F.linear(F.linear(h, m.w).tanh(), m.v).tanh(), m.u)

    expected = gradient_norms(
        Model(plain, **SHAPES, v=(5, 5), b=(5, 5)), images(3, 5), layers=layers
    )
    torch.testing.assert_close(got.norms, expected.norms, rtol=1e-8, atol=0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_last_layer_behind_checkpointed_blocks_has_its_closed_form(reentrant):
    model = nn.Sequential(checkpointed(reentrant), nn.Linear(4, 3).double()).eval()
    assert find_head(model, images(3, 5)).closed_form
    expected = one_backward_a_sample(model, images(3, 5), layers="1.weight").norms[:, 0]
    torch.testing.assert_close(GradNorm(model)(images(3, 5)), expected)


def test_checkpointing_of_timm_is_as_if_it_were_off():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    small = {"embed_dim": 12, "depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 8}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **small).double().eval()
    x = images(3, 3, 16, 16)
    expected = gradient_norms(model, x)
    model.set_grad_checkpointing(True)
    got = gradient_norms(model, x)
    assert got.rules == expected.rules
    torch.testing.assert_close(got.norms, expected.norms, rtol=1e-8, atol=1e-12)


def test_other_threads_keep_their_checkpointing():
    kept = []

    def train():
        x = torch.ones(2, requires_grad=True)
        y = checkpoint(lambda x: x.exp().exp(), x, use_reentrant=True)
        with torch.autograd.graph.save_on_cpu():
            y = y.exp()
        kept.append(y.grad_fn.next_functions[0][0].name())
        y.sum().backward()

    with force_eager():
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert kept == ["CheckpointFunctionBackward"]
    train()
    assert kept == ["CheckpointFunctionBackward"] * 2
