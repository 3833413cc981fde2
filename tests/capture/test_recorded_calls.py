"""The recorder finds every use of a parameter, whatever the model does with it, or says so."""

import gc
import weakref

import pytest
import torch
from helpers.small_models import Model, hold_to_reference, images
from torch import nn
from torch.nn import functional as F

from gradscore.capture.recording import record
from gradscore.engine import gradient_norms
from gradscore.errors import ModelError
from gradscore.reference import one_backward_a_sample


def shared(m, x):
    return F.linear(F.linear(x, m.w).tanh(), m.w)


def tied_and_transposed(m, x):
    return F.linear(F.linear(x, m.w).tanh(), m.w.t())


def joined(m, x):
    bias = torch.cat([m.q, torch.zeros_like(m.q), m.v])
    return F.linear(x, m.w, bias)


def standardised(m, x):
    w = m.w.reshape(1, len(m.w), -1)
    w = F.batch_norm(w, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(m.w)
    return F.conv2d(x, w * m.gain.view(-1, 1, 1, 1)).mean((2, 3))


def class_token(m, x):
    x = torch.cat([m.token.expand(len(x), -1, -1), x], dim=1) + m.position
    return x.tanh().mean(dim=1)


def gathered(m, x):
    return (x + m.table[m.index.flatten()].view(3, 3, -1).sum(dim=1)).tanh().mean(dim=1)


def in_place(m, x):
    x = F.linear(x, m.w)
    x += m.b
    x *= m.s
    x.relu_()
    return F.linear(x, m.w).relu_()


def in_place_on_a_view(m, x):
    x = F.linear(x, m.w)
    x[:, 0].add_(m.b)
    return x.tanh().sum(dim=1)


def assigned(m, x):
    x = F.linear(x, m.w)
    x[:, 0] = m.b
    return x.tanh().sum(dim=1)


def windows(m, x):
    n, length, width = x.shape
    x = x.reshape(n * length // 2, 2, width)
    x = F.linear(x, m.w).tanh() + m.bias
    return x.reshape(n, length, width).sum(dim=1)


def interleaved_windows(m, x):
    n = len(x)
    x = torch.cat(x.chunk(2, dim=1), dim=0)
    x = F.layer_norm(F.linear(x, m.w), (x.shape[-1],), m.s)
    return x.reshape(2, n, *x.shape[1:]).sum(dim=(0, 2))


def sequence_first(m, x):
    x = x.transpose(0, 1)
    x = F.linear(x, m.w).tanh() + m.position
    return x.sum(dim=0)


def lone_scalar(m, x):
    return F.linear(x, m.w) * m.scale


def complex_filter(m, x):
    filtered = torch.fft.rfft(x) * torch.view_as_complex(m.filter)
    return torch.view_as_real(filtered).sum(dim=-1)


def deep_derivation(m, x):
    w = m.w
    for _ in range(3000):
        w = w + 1e-6
    return F.linear(x, w)


def batched_noise(m, x):
    return x + (torch.zeros(len(x), 1, dtype=x.dtype) + m.b)


def einsum(m, x):
    return torch.einsum("nld,dk->nk", x, m.w)


def no_gradient_here(m, x):
    with torch.no_grad():
        gate = F.linear(x, m.gate).sigmoid()
    return F.linear(x, m.w) * gate


def expanded_as(m, x):
    return F.linear(x * m.gain.expand_as(x), m.w).tanh().sum(dim=1)


def broadcast_together(m, x):
    x, gain = torch.broadcast_tensors(x, m.gain)
    return (F.linear((x * gain).tanh() + x, m.w) * gain.sum(dim=(1, 2))[:, None, None]).sum(dim=1)


def one_output_made_of_another(m, x):
    hidden = cell = x.new_zeros(len(x), 4)
    for step in x.unbind(1):
        hidden, cell = torch.lstm_cell(step, (hidden, cell), m.w, m.u, m.b, m.b)
    return hidden


def packed(m, x):
    lengths = torch.full((len(x),), x.shape[1])
    data, sizes, *_ = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    state = x.new_zeros(1, len(x), 4), x.new_zeros(1, len(x), 4)
    return torch.lstm(data, sizes, state, [m.w, m.u], False, 1, 0.0, False, False)[1][0]


def copied_for_each(m, x):
    return x * m.s.repeat_interleave(len(x), dim=0) + torch.stack([m.b] * len(x))


def changed_by_the_generic_rule(m, x):
    x = F.linear(x, m.w)
    x /= m.s
    return x.div_(m.t)


def changed_after_repeat(m, x):
    token = m.token.repeat(len(x), 1)
    token += x
    return F.linear(token, m.w)


def transformed_inside(m, x):
    return torch.func.vmap(torch.func.grad(lambda row: (m.w @ row).tanh().sum()))(x) * m.s


def joined_with_another(m, x):
    x = F.linear(x, m.u).tanh()
    first, second = torch.cat([F.linear(x, m.w, m.b), F.linear(x, m.v, m.b)]).tanh().chunk(2)
    return (first - 2 * second).mean(1)


CASES = {
    "shared": (shared, {"w": (5, 5)}, (3, 5)),
    "tied and transposed": (tied_and_transposed, {"w": (4, 5)}, (3, 5)),
    "joined": (joined, {"w": (6, 5), "q": (2,), "v": (2,)}, (3, 5)),
    "standardised": (standardised, {"w": (4, 3, 2, 2), "gain": (4,)}, (3, 3, 5, 5)),
    "class token": (class_token, {"token": (1, 1, 5), "position": (1, 4, 5)}, (3, 3, 5)),
    "gathered": (gathered, {"table": (4, 5)}, (2, 3, 5)),
    "in place": (in_place, {"w": (5, 5), "b": (5,), "s": (5,)}, (3, 5)),
    "in place on a view": (in_place_on_a_view, {"w": (5, 5), "b": (5,)}, (3, 4, 5)),
    "assigned": (assigned, {"w": (5, 5), "b": (5,)}, (3, 4, 5)),
    "windows": (windows, {"w": (5, 5), "bias": (2, 5)}, (3, 6, 5)),
    "interleaved": (interleaved_windows, {"w": (5, 5), "s": (5,)}, (3, 6, 5)),
    "sequence first": (sequence_first, {"w": (5, 5), "position": (4, 1, 5)}, (3, 4, 5)),
    "as long as the batch": (sequence_first, {"w": (5, 5), "position": (3, 1, 5)}, (3, 3, 5)),
    "scalar": (lone_scalar, {"w": (5, 5), "scale": ()}, (3, 5)),
    "complex": (complex_filter, {"filter": (4, 2)}, (3, 6)),
    "deep derivation": (deep_derivation, {"w": (4, 5)}, (3, 5)),
    "made with the batch": (batched_noise, {"b": (5,)}, (3, 5)),
    "einsum": (einsum, {"w": (5, 4)}, (3, 4, 5)),
    "expanded as data": (expanded_as, {"gain": (1, 1, 5), "w": (4, 5)}, (3, 6, 5)),
    "broadcast together": (broadcast_together, {"gain": (1, 1, 5), "w": (4, 5)}, (3, 6, 5)),
    "cell": (one_output_made_of_another, {"w": (16, 5), "u": (16, 4), "b": (16,)}, (3, 6, 5)),
    "packed": (packed, {"w": (16, 5), "u": (16, 4)}, (3, 6, 5)),
    "copied": (copied_for_each, {"s": (1, 5), "b": (5,)}, (3, 5)),
    "divided": (changed_by_the_generic_rule, {"w": (4, 5), "s": (4,), "t": (4,)}, (3, 5)),
    "changed after repeat": (changed_after_repeat, {"token": (1, 5), "w": (4, 5)}, (3, 5)),
    "transformed": (transformed_inside, {"w": (4, 5), "s": (5,)}, (3, 5)),
    "joined with another": (
        joined_with_another,
        {"u": (5, 5), "w": (4, 5), "v": (4, 5), "b": (4,)},
        (3, 6, 5),
    ),
    "no gradient": (no_gradient_here, {"gate": (4, 5), "w": (4, 5)}, (3, 5)),
}
BY_REFERENCE = {
    "assigned": {"b"},
    "made with the batch": {"b"},
    "packed": {"w", "u"},
    "copied": {"s", "b"},
    "transformed": {"w"},
}


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("name", CASES)
def test_equals_reference(name, batch):
    forward, parameters, shape = CASES[name]
    rules = hold_to_reference(Model(forward, **parameters), images(batch, *shape[1:]))
    if batch > 2:
        served = {key for key, rule in rules.items() if rule == "reference"}
        assert served == BY_REFERENCE.get(name, set())


def test_a_spread_over_something_of_the_batch_size_is_told_from_one_over_the_batch():
    def heads(m, x):
        return (x.unsqueeze(1) * m.gain.expand(2, -1)).tanh().sum(dim=1)

    assert hold_to_reference(Model(heads, gain=(1, 5)), images(2, 5)) == {
        "gain": "scale, pulled back"
    }


def test_attention_is_entered():
    torch.manual_seed(0)

    class Attention(nn.Module):
        def __init__(self, batch_first):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=batch_first)
            self.batch_first = batch_first

        def forward(self, x):
            x = x if self.batch_first else x.transpose(0, 1)
            x = self.attention(x, x, x, need_weights=False)[0]
            return x.tanh().sum(dim=1 if self.batch_first else 0)

    for batch_first in (True, False):
        model = Attention(batch_first).double().eval()
        rules = hold_to_reference(model, images(3, 4, 6), rtol=1e-7)
        assert "reference" not in rules.values()
        assert rules["attention.in_proj_weight"].startswith("linear")


def test_recurrent_layers_are_served():
    torch.manual_seed(0)

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(5, 3, batch_first=True, bidirectional=True)

        def forward(self, x):
            return self.lstm(x)[0].sum(dim=1)

    rules = hold_to_reference(Recurrent().double().eval(), images(3, 4, 5))
    assert set(rules.values()) == {"generic (lstm)"}


def test_custom_functions_fall_to_the_reference():
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx, grad):
            x, w = ctx.saved_tensors
            return grad * w, (grad * x).sum(dim=0)

    model = Model(lambda m, x: F.linear(Scale.apply(x, m.s), m.w), s=(5,), w=(4, 5))
    assert hold_to_reference(model, images(3, 5)) == {"s": "reference", "w": "linear"}


def test_scripted_modules_fall_to_the_reference():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            with pytest.warns((DeprecationWarning, FutureWarning)):
                self.scripted = torch.jit.script(nn.Linear(5, 5).double())
            self.head = nn.Linear(5, 4).double()

        def forward(self, x):
            return self.head(self.scripted(x).tanh())

    rules = hold_to_reference(Mixed().eval(), images(3, 5))
    assert rules["scripted.weight"] == "reference"
    assert rules["head.weight"] == "linear"


def test_a_model_that_mixes_samples_is_refused():
    def mixing(m, x):
        x = F.linear(x, m.w)
        return torch.softmax(x @ x.t(), dim=1) @ x

    with pytest.raises(ModelError, match="do not depend on the rest of the batch"):
        gradient_norms(Model(mixing, w=(4, 5)), images(3, 5) / 4)


def test_what_may_mix_samples_is_served_one_sample_at_a_time():
    def unmixed(m, x):
        x = F.linear(x, m.w)
        return x + 0 * (x @ x.t()) @ x

    assert hold_to_reference(Model(unmixed, w=(4, 5)), images(3, 5)) == {"w": "reference"}


def test_an_input_changed_after_it_was_read_is_an_error():
    def changing(m, x):
        x = x * 1
        y = x * m.s
        x.zero_()
        return y

    with pytest.raises(ModelError, match="argument 'input' changed in place after the call"):
        gradient_norms(Model(changing, s=(5,)), images(3, 5))


@pytest.mark.parametrize("first", [True, False], ids=["channels first", "tokens"])
@pytest.mark.parametrize(("batch", "rows"), [(1, 2), (2, 1)], ids=["lone image", "one row"])
def test_batch_norm_of_tokens(batch, rows, first):
    def tokens(m, x):
        y = F.linear(x, m.w).transpose(1, 2).unflatten(2, (rows, -1))
        y = F.batch_norm(y.contiguous() if first else y, m.mean, m.mean.square() + 1, m.s, m.b)
        return (y.flatten(2).transpose(1, 2) * m.gain).tanh().mean(1)

    def plain(m, x):
        y = (F.linear(x, m.w) - m.mean) / (m.mean.square() + 1 + 1e-5).sqrt() * m.s + m.b
        return (y * m.gain).tanh().mean(1)

    parameters = {"w": (4, 5), "s": (4,), "b": (4,), "gain": (6, 4)}
    model, other = Model(tokens, **parameters), Model(plain, **parameters)
    for each in (model, other):
        each.register_buffer("mean", images(4))
    expected = one_backward_a_sample(other, images(batch, 6, 5)).norms
    for method in (gradient_norms, one_backward_a_sample):
        got = method(model, images(batch, 6, 5)).norms
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=0)


def test_a_recording_frees_what_batch_norms_read_with_its_last_reference():
    seen = []

    def tokens(m, x):
        y = F.linear(x, m.w).tanh().transpose(1, 2)[..., None]
        seen.append(weakref.ref(y))
        return F.batch_norm(y, m.mean, m.mean.square() + 1, m.s).mean((2, 3))

    model = Model(tokens, w=(4, 5), s=(4,))
    model.register_buffer("mean", images(4))
    gc.collect()
    gc.disable()
    try:
        recording = record(model, images(2, 6, 5), dict(model.named_parameters()))
        recording.norms(torch.ones(2, 4, dtype=torch.float64), (1.0,))
        kept = [tensor() is not None for tensor in seen]
        assert sum(kept) == 1
        del recording
        assert [tensor() for tensor in seen] == [None] * len(seen)
    finally:
        gc.enable()
