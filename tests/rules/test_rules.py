"""Every rule of the table must give what autograd gives, one sample at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gradscore import gradient_norms
from gradscore.capture.calls import Arguments
from gradscore.errors import InvalidArgument
from gradscore.norms import vector_norm
from gradscore.reference import one_backward_a_sample
from gradscore.rules import RULES, Call, Rule, find_rule, register_rule, signature

ORDERS = (0.5, 1.0, 2.0, 3.0, math.inf)
N = 3


def draw(*shape, seed=0):
    rng = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def ints(*shape, high):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(0))


def convolutions():
    for function, dims in ((F.conv1d, 1), (F.conv2d, 2), (F.conv3d, 3)):
        x = draw(N, 4, *(7, 6, 5)[:dims])
        yield "plain", function, (x, draw(6, 4, *(3, 2, 2)[:dims]), draw(6)), {}
        how = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}
        yield "grouped strided", function, (x, draw(6, 2, *(3, 2, 2)[:dims]), draw(6)), how
        yield "same", function, (x, draw(6, 4, *(4, 3, 2)[:dims]), draw(6)), {"padding": "same"}
        yield "valid", function, (x, draw(6, 4, *(2, 3, 2)[:dims]), draw(6)), {"padding": "valid"}
        yield "depthwise", function, (x, draw(8, 1, *(3, 3, 3)[:dims]), draw(8)), {"groups": 4}
        yield "windows", function, (draw(2 * N, 4, *(4, 3, 3)[:dims]), draw(6, 4, *[1] * dims)), {}
        yield "one position", function, (x, draw(6, 4, *(7, 6, 5)[:dims]), draw(6)), {}
        yield (
            "tuples",
            function,
            (x, draw(6, 4, *[3] * dims), draw(6), (2,) * dims, (1,) * dims),
            {},
        )
    for function, dims in (
        *((F.conv_transpose1d, 1), (F.conv_transpose2d, 2), (F.conv_transpose3d, 3)),
    ):
        x = draw(N, 4, *(4, 3, 3)[:dims])
        yield "plain", function, (x, draw(4, 5, *(3, 2, 2)[:dims]), draw(5)), {}
        how = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "dilation": 2}
        yield "grouped strided", function, (x, draw(4, 3, *[3] * dims), draw(6)), how


def normalizations():
    mean, var = draw(4, seed=1), draw(4, seed=2).abs() + 0.5
    for x in (draw(N, 4), draw(N, 4, 5), draw(2 * N, 4, 3, 3), draw(N, 4, 2, 3, 2)):
        yield "eval", F.batch_norm, (x, mean, var, draw(4), draw(4, seed=5)), {"eps": 0.1}
        args = (x, draw(4), draw(4, seed=5), mean, var, False, 0.1, 0.1, False)
        yield "eval", torch.batch_norm, args, {}
    for x in (draw(N, 4, 5), draw(2 * N, 4, 3, 3)):
        for function in (F.group_norm, torch.group_norm):
            yield "groups", function, (x, 2, draw(4), draw(4, seed=5)), {"eps": 0.1}
        yield (
            "own",
            F.instance_norm,
            (x,),
            {"weight": draw(4), "bias": draw(4, seed=5), "eps": 0.1},
        )
        yield "running", F.instance_norm, (x, mean, var, draw(4), draw(4), False), {"eps": 0.1}
    for x, shape in ((draw(N, 5), (5,)), (draw(2 * N, 4, 5), (5,)), (draw(N, 2, 4, 5), (4, 5))):
        for function in (F.layer_norm, torch.layer_norm):
            yield "layer", function, (x, shape, draw(*shape), draw(*shape, seed=5)), {"eps": 0.1}
        for function in (F.rms_norm, torch.rms_norm):
            yield "rms", function, (x, shape, draw(*shape)), {"eps": 0.1}
            yield "rms default eps", function, (1e-9 * x, shape, draw(*shape)), {}
    # So small that the default eps is most of what is divided by.
    x = 1e-3 * draw(2 * N, 4, 5)
    yield "default eps", F.batch_norm, (x, 1e-3 * mean, 1e-6 * var, draw(4), draw(4)), {}
    yield "default eps", F.instance_norm, (x,), {"weight": draw(4), "bias": draw(4)}
    for function in (F.group_norm, torch.group_norm):
        yield "default eps", function, (x, 2, draw(4), draw(4)), {}
    for function in (F.layer_norm, torch.layer_norm):
        yield "default eps", function, (x, (5,), draw(5), draw(5)), {}


def elementwise():
    parameters = {"row": (5,), "table": (1, 4, 5), "column": (4, 1), "scalar": (), "one": (1,)}
    for name, shape in parameters.items():
        x, w = draw(N, 4, 5), draw(*shape, seed=3)
        for function in (torch.mul, Tensor.mul, torch.multiply, Tensor.multiply):
            yield name, function, (x, w), {}
            yield f"{name} first", function, (w, x), {}
        for function in (torch.add, Tensor.add, torch.sub, Tensor.sub):
            yield name, function, (x, w), {"alpha": 2}
            yield f"{name} first", function, (w, x), {"alpha": 2}
        for function in (torch.addcmul, Tensor.addcmul):
            yield name, function, (x, w, draw(N, 4, 5, seed=4)), {"value": 2}
            yield f"{name} second", function, (x, draw(N, 4, 5, seed=4), w), {}
            yield f"{name} first", function, (w, x, draw(N, 4, 5, seed=4)), {}
        for function in (Tensor.mul_, Tensor.add_, Tensor.sub_):
            yield name, function, (x, w), {}
        yield name, Tensor.addcmul_, (x, w, draw(N, 4, 5, seed=4)), {}
        yield f"{name} second", Tensor.addcmul_, (x, draw(N, 4, 5, seed=4), w), {}
    for function in (F.prelu, torch.prelu):
        yield "one slope", function, (draw(N, 4, 5), draw(1)), {}
        yield "slopes", function, (draw(2 * N, 4, 5), draw(4)), {}
        yield "no positions", function, (draw(N, 4), draw(4)), {}


def products():
    for function in (torch.matmul, Tensor.matmul):
        yield "right", function, (draw(N, 2, 4, 5), draw(5, 3)), {}
        yield "right one", function, (draw(N, 5), draw(5, 3)), {}
        yield "right vector", function, (draw(N, 4, 5), draw(5)), {}
        yield "right heads", function, (draw(N, 2, 4, 5), draw(2, 5, 3)), {}
        yield "left", function, (draw(7, 4), draw(N, 2, 4, 5)), {}
        yield "left heads", function, (draw(2, 6, 4), draw(N, 2, 4, 5)), {}
        yield "left vector", function, (draw(4), draw(N, 4, 5)), {}
    for function in (torch.mm, Tensor.mm):
        yield "right", function, (draw(2 * N, 5), draw(5, 3)), {}


def tables():
    index = ints(N, 2, 3, high=4)
    yield "plain", F.embedding, (index, draw(4, 5)), {}
    for row in (-4, -3, 0, 3):
        yield f"padding {row}", F.embedding, (index, draw(4, 5), row), {}
    yield "by frequency", F.embedding, (index, draw(4, 5)), {"scale_grad_by_freq": True}
    yield "plain", torch.embedding, (draw(4, 5), index), {}
    # Here a negative row, such as the default, is none at all.
    for row in (-3, -1, 0, 1):
        yield f"padding {row}", torch.embedding, (draw(4, 5), index, row), {}


def expansions():
    yield "token", Tensor.expand, (draw(1, 1, 5), N, 4, -1), {}
    yield "new axis", Tensor.expand, (draw(4, 5), N, 4, 5), {}
    yield "token", Tensor.expand_as, (draw(1, 5), draw(N, 5)), {}
    yield "repeat", Tensor.repeat, (draw(1, 2, 5), N, 3, 1), {}
    for function in (torch.tile, torch.broadcast_to, Tensor.broadcast_to):
        size = (N, 2, 3) if function is torch.tile else (N, 4, 5)
        yield "table", function, (draw(1, 4, 5), size), {}
    yield "tile", Tensor.tile, (draw(1, 4, 5), (N, 2, 3)), {}


def attention():
    q, k, v = (draw(2 * N, 2, 4, 6, seed=s) for s in range(3))
    for shape in ((2, 4, 4), (1, 2, 4, 4), (4, 4), (1, 1, 1, 4)):
        mask = {"attn_mask": draw(*shape)}
        yield f"mask {shape}", F.scaled_dot_product_attention, (q, k, v), mask
        for scale in (0.7, 0.0):
            scaled = mask | {"scale": scale}
            yield f"scaled {scale} {shape}", F.scaled_dot_product_attention, (q, k, v), scaled
    shared = {"attn_mask": draw(2, 4, 4), "enable_gqa": True}
    yield "gqa", F.scaled_dot_product_attention, (q, k[:, :1], v[:, :1]), shared


def linears():
    yield "one position", F.linear, (draw(N, 5), draw(4, 5), draw(4)), {}
    yield "positions", F.linear, (draw(2 * N, 3, 5), draw(4, 5), draw(4)), {}
    yield "no bias", F.linear, (draw(N, 1, 5), draw(4, 5)), {}


CASES = [
    (f"{function.__name__} {name} {position}", function, args, kwargs)
    for family in (
        *(linears, convolutions, normalizations, elementwise),
        *(products, tables, expansions, attention),
    )
    for position, (name, function, args, kwargs) in enumerate(family())
]


def batched(x):
    return isinstance(x, Tensor) and x.ndim > 0 and len(x) in (N, 2 * N)


def hold_to_autograd(function, args, kwargs, samples=N):
    """Compare every rule of a call with autograd, and return how many there were."""
    given = Arguments(function, args, kwargs)
    named, slots = given.named(), dict(given.tensors)
    ruled = {s: find_rule(function, given.name(s), given.named()) for s in slots}
    data_first = function not in (Tensor.expand, Tensor.repeat, torch.tile, Tensor.tile)
    output = given.replaced({s: x.clone() for s, x in slots.items()}).call()
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).to(output)
    rows = len(output) // samples
    compared = 0
    for slot, parameter in slots.items():
        rule = ruled[slot]
        if rule is None or (batched(parameter) and given.name(slot) not in ("weight", "bias")):
            continue
        leaf = parameter.clone().requires_grad_()
        whole = given.replaced({s: x.clone() for s, x in slots.items()} | {slot: leaf}).call()
        gradients = []
        for sample in range(samples):
            cotangent = torch.zeros_like(grad)
            part = slice(sample * rows, (sample + 1) * rows)
            cotangent[part] = grad[part]
            gradients += torch.autograd.grad(whole, leaf, cotangent, retain_graph=True)
        expected = torch.stack(gradients)
        if function is F.embedding and kwargs.get("scale_grad_by_freq"):
            continue
        if not rule.reads_data and data_first:
            meta = {
                given.name(s): torch.empty_like(x, device="meta")
                for s, x in slots.items()
                if s != slot and batched(x)
            }
            call = Call(function, named | meta, samples)
        else:
            call = Call(function, named, samples)
        got = rule.gradient(call, given.name(slot), grad)
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
        compared += 1
        if rule.norms is not None:
            norms = rule.norms(call, given.name(slot), grad, ORDERS)
            if norms is not None:
                flat = expected.reshape(samples, -1)
                exact = torch.stack([vector_norm(flat, p) for p in ORDERS], dim=1)
                torch.testing.assert_close(norms, exact, rtol=1e-8, atol=1e-11)
    return compared


@pytest.mark.filterwarnings("ignore:Using padding=.same:UserWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_equals_autograd(case):
    _, function, args, kwargs = case
    by_frequency = kwargs.get("scale_grad_by_freq", False)
    assert hold_to_autograd(function, args, kwargs) > 0 or by_frequency


class Routed(nn.Module):
    """Sends each sample to one of two experts, by its first entry."""

    def __init__(self, expert):
        super().__init__()
        self.expert, self.head = expert, nn.Linear(4, 3)

    def forward(self, x):
        chosen = x[:, 0, 0] > 0
        x = x.index_put((chosen,), self.expert(x[chosen]))
        return self.head(x.mean(dim=2))


class Multiplied(nn.Module):
    """Multiplies with a bare parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        return x @ self.weight + self.weight[0]


EXPERTS = {
    "batch norm": lambda: nn.BatchNorm1d(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "layer norm": lambda: nn.LayerNorm(5),
    "rms norm": lambda: nn.RMSNorm(5),
    "prelu": lambda: nn.PReLU(4),
    "one slope": lambda: nn.PReLU(),
    "linear": lambda: nn.Linear(5, 5),
    "conv": lambda: nn.Conv1d(4, 4, 3, padding=1),
    "transposed conv": lambda: nn.ConvTranspose1d(4, 4, 3, padding=1),
    "product": Multiplied,
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("expert", EXPERTS)
def test_an_expert_that_no_sample_is_sent_to_has_norms_of_zero(expert, batch):
    torch.manual_seed(0)
    model = Routed(EXPERTS[expert]()).double().eval()
    x = draw(batch, 4, 5)
    x[:, 0, 0] = -1
    found = gradient_norms(model, x)
    norms = dict(zip(found.parameters, found.norms.unbind(1), strict=True))
    expected = one_backward_a_sample(model, x)
    torch.testing.assert_close(found.norms, expected.norms, rtol=1e-9, atol=1e-12)
    assert all(not norms[name].any() for name in norms if name.startswith("expert"))


@pytest.mark.parametrize(
    "change",
    [{"weight": draw(5)}, {"bias": draw(3, 4)}, {"weight": draw(5), "bias": torch.tensor(1.0)}],
)
def test_a_product_that_is_no_layer_has_no_layers_rule(change):
    arguments = {"input": draw(N, 5), "weight": draw(4, 5)} | change
    assert find_rule(F.linear, "weight", arguments) is None


def test_rows_of_a_table_may_be_scaled_by_frequency():
    table, index = draw(4, 5), ints(N, 6, high=4)
    call = Call(F.embedding, {"input": index, "weight": table, "scale_grad_by_freq": True}, N)
    grad = draw(N, 6, 5, seed=7)
    for sample, got in enumerate(RULES[F.embedding, "weight"].gradient(call, "weight", grad)):
        leaf = table.clone().requires_grad_()
        output = F.embedding(index[sample], leaf, scale_grad_by_freq=True)
        (expected,) = torch.autograd.grad(output, leaf, grad[sample])
        torch.testing.assert_close(got, expected)


def test_every_rule_has_a_case():
    def arguments(function, args, kwargs):
        given = Arguments(function, args, kwargs)
        return {
            given.name(slot).partition("[")[0]
            for slot, x in given.tensors
            if not batched(x) or given.name(slot) in ("weight", "bias")
        }

    covered = {(case[1], name) for case in CASES for name in arguments(*case[1:])}
    # In-place functions change their first argument, which cannot be a parameter.
    in_place = {key for key in RULES if key[0].__name__.endswith("_") and key[1] == "input"}
    matrix = {key for key in RULES if key[0] in (torch.mm, Tensor.mm) and key[1] == "input"}
    missing = set(RULES) - covered - in_place - matrix
    assert not missing, sorted(f"{f.__name__} {name}" for f, name in missing)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 3),
    groups=st.integers(1, 3),
    width=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    rows=st.integers(1, 2),
)
def test_convolutions_drawn(samples, groups, width, size, kernel, stride, padding, dilation, rows):
    extent = [s + 2 * padding - dilation * (k - 1) for s, k in zip(size, kernel, strict=True)]
    if min(extent) < 1:
        return
    x = draw(samples * rows, groups * width[0], *size)
    weight, bias = draw(groups * width[1], width[0], *kernel), draw(groups * width[1])
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    assert hold_to_autograd(F.conv2d, (x, weight, bias), how, samples) == 2


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(1, 4),
    positions=st.lists(st.integers(1, 4), max_size=2),
    width=st.integers(1, 5),
    out=st.integers(1, 5),
)
def test_linear_layers_drawn(samples, positions, width, out):
    x = draw(samples, *positions, width)
    assert hold_to_autograd(F.linear, (x, draw(out, width), draw(out)), {}, samples) == 2


@pytest.mark.parametrize("function", [F.layer_norm, torch.layer_norm])
def test_a_lone_sample_may_come_without_an_axis_to_sum_over(function):
    args = draw(4, 5), (4, 5), draw(4, 5), draw(4, 5)
    assert hold_to_autograd(function, args, {}, samples=1) == 2


def test_a_second_rule_for_an_argument_is_refused():
    rule = Rule("mine", lambda call, argument, grad: grad)
    with pytest.raises(InvalidArgument, match="'weight' of linear, which is served by 'linear'"):
        register_rule(F.linear, "weight", rule)


def test_names_of_arguments_are_known():
    assert signature(F.linear) == ("input", "weight", "bias")
    call = Arguments(torch.einsum, ("ij,jk->ik", draw(2, 2), draw(2, 3)), {})
    assert [call.name(slot) for slot, _ in call.tensors] == ["operands[0]", "operands[1]"]
    call = Arguments(torch.einsum, ("ij,jk->ik", [draw(2, 2), draw(2, 3)]), {})
    assert [call.name(slot) for slot, _ in call.tensors] == ["operands[0]", "operands[1]"]
