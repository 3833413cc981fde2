"""Where the samples are is proved, not believed: in another order, in parts, or mixed."""

import numpy as np
import pytest
import torch
from helpers.small_models import Model, hold_to_reference, images
from torch.nn import functional as F

from gradscore.capture import batch_check
from gradscore.engine import gradient_norms
from gradscore.errors import ModelError
from gradscore.network import state_of
from gradscore.reference import one_backward_a_sample

LAYERS = {"w": (5, 5), "u": (4, 5)}
TOKENS = (3, 6, 5)


def flipped(m, x):
    return F.linear(F.linear(x.flip(0), m.w).tanh().flip(0), m.u)


def sorted_by_value(m, x):
    order = x[:, 0].argsort()
    return F.linear(F.linear(x[order], m.w).tanh()[order.argsort()], m.u)


def sorted_as_a_list(m, x):
    order = sorted(range(len(x)), key=x[:, 0].tolist().__getitem__)
    back = sorted(range(len(x)), key=order.__getitem__)
    return F.linear(F.linear(x[order], m.w).tanh()[back], m.u)


def sorted_by_numpy(m, x):
    order = np.argsort(np.asarray(x[:, 0].detach()))
    back = torch.from_numpy(np.argsort(order))
    return F.linear(F.linear(x[order.tolist()], m.w).tanh()[back], m.u)


def sorted_by_a_lookup(m, x):
    keys = {float(value): row for row, value in enumerate(x[:, 0].detach().clone())}
    order = [keys[key] for key in sorted(keys)]
    back = sorted(range(len(x)), key=order.__getitem__)
    return F.linear(F.linear(x[order], m.w).tanh()[back], m.u)


def sorted_by_memory(m, x):
    values = memoryview(bytearray(x[:, 0].detach().contiguous().untyped_storage()))
    values = values.cast("d")
    order = sorted(range(len(x)), key=lambda row: values[row])
    back = sorted(range(len(x)), key=order.__getitem__)
    return F.linear(F.linear(x[order], m.w).tanh()[back], m.u)


def sorted_as_rows(m, x):
    order = sorted(range(len(x)), key=lambda row: x[row, 0])
    rows = F.linear(torch.stack([x[row] for row in order]), m.w).tanh()
    back = sorted(range(len(x)), key=order.__getitem__)
    return F.linear(torch.stack([rows[row] for row in back]), m.u)


def sorted_by_embedding(m, x):
    order = x[:, 0].argsort()
    back = order.argsort()
    return F.linear(F.embedding(back, F.linear(F.embedding(order, x), m.w).tanh()), m.u)


def routed(m, x):
    tokens, expert = x.flatten(0, 1), (x[..., 0] > 0).flatten()
    out = torch.zeros_like(tokens)
    for number, weight in enumerate((m.w, m.v)):
        rows = (expert == bool(number)).nonzero().squeeze(1)
        out = out.index_add(0, rows, F.linear(tokens[rows], weight).tanh())
    return F.linear(out.unflatten(0, x.shape[:2]).mean(1), m.u)


def as_many_as_positive(m, x):
    mask = x[..., 0] > 0
    out = torch.zeros_like(x)
    out[mask] = F.linear(x[mask], m.w).tanh()
    return F.linear(out.sum(1), m.u)


def folded(m, x):
    tall = x.transpose(0, 1).flatten(0, 1)
    return F.linear(F.linear(tall, m.w).unflatten(0, (-1, len(x))).tanh().mean(0), m.u)


MOVED = {
    "flipped": (flipped, LAYERS, (3, 5), {"w"}),
    "sorted": (sorted_by_value, LAYERS, (3, 5), {"w"}),
    "sorted as a list": (sorted_as_a_list, LAYERS, (3, 5), {"w"}),
    "sorted by NumPy": (sorted_by_numpy, LAYERS, (3, 5), {"w"}),
    "sorted by a lookup": (sorted_by_a_lookup, LAYERS, (3, 5), {"w", "u"}),
    "sorted by memory": (sorted_by_memory, LAYERS, (3, 5), {"w"}),
    "sorted as rows": (sorted_as_rows, LAYERS, (3, 5), {"w", "u"}),
    "sorted by embedding": (sorted_by_embedding, LAYERS, (3, 5), {"w"}),
    "routed": (routed, {**LAYERS, "v": (5, 5)}, TOKENS, {"w", "v"}),
    "ragged": (as_many_as_positive, LAYERS, TOKENS, {"w"}),
    "folded": (folded, LAYERS, TOKENS, set()),
}


@pytest.mark.parametrize("name", MOVED)
def test_samples_that_move_are_followed_or_left_to_the_reference(name):
    forward, parameters, shape, by_reference = MOVED[name]
    model = Model(forward, **parameters)
    for batch in (1, 2, 3, 5):
        for seed in range(4 if batch > 1 else 1):  # one sample is in one order
            x = images(batch, *shape[1:], seed=seed)
            rules = hold_to_reference(model, x)
            if batch == 5:
                assert {key for key, rule in rules.items() if rule == "reference"} <= by_reference


def folded_behind_a_gate(m, x):
    tall = x.transpose(0, 1).flatten(0, 1)
    hidden = F.linear(tall, m.w).unflatten(0, (-1, len(x))).tanh().mean(0)
    return F.linear(hidden, m.u) * (x[:, 0, 0] - 1).relu()[:, None] + F.linear(x[:, 0], m.v)


def turned_behind_a_gate(m, x):
    hidden = F.linear(x.flip(0), m.w).flip(0).tanh()
    return F.linear(hidden, m.u) * (x[:, 0] - 1).relu()[:, None] + F.linear(x, m.v)


GATES = {"folded": (folded_behind_a_gate, (6, 5)), "turned": (turned_behind_a_gate, (5,))}


@pytest.mark.parametrize("batch", [2, 4, 8])
@pytest.mark.parametrize("name", GATES)
def test_what_a_closed_gate_did_not_show_is_not_taken_for_known(name, batch):
    forward, shape = GATES[name]
    model = Model(forward, **LAYERS, v=(4, 5))
    for seed in range(12):
        x = images(batch, *shape, seed=seed)
        expected = one_backward_a_sample(model, x).norms
        torch.testing.assert_close(gradient_norms(model, x).norms, expected, rtol=1e-9, atol=1e-12)


def test_a_gate_closed_for_all_so_far_is_learned_when_it_opens():
    model = Model(folded_behind_a_gate, **LAYERS, v=(4, 5))
    closed, opened = images(5, 6, 5), images(5, 6, 5, seed=1)
    closed[:, 0, 0], opened[:, 0, 0] = -1, torch.arange(5) + 2.0
    assert "reference" not in hold_to_reference(model, closed).values()
    hold_to_reference(model, opened)
    assert "reference" not in hold_to_reference(model, opened).values()


def test_a_value_far_above_all_others_hides_no_order_of_rows():
    x = images(3, 6, 5)
    x[0, 0] *= 1e4
    assert "reference" not in hold_to_reference(Model(folded, **LAYERS), x).values()


@pytest.mark.parametrize("name", [name for name in MOVED if name.startswith("sorted")])
def test_order_by_value_is_proved_for_each_batch_anew(name):
    model = Model(MOVED[name][0], **LAYERS)
    ascending = images(4, 5)
    ascending[:, 0] = torch.arange(4)
    # In the first, the last, first and third sample are in order among themselves.
    for order in ([1, 3, 2, 0], [0, 1, 2, 3], [3, 2, 1, 0]):
        hold_to_reference(model, ascending[order])


MIXED = {
    "divided by their number": lambda h: h / len(h),
    "shifted": lambda h: F.pad(h, (0, 0, 1, -1)),
    "summed up": lambda h: h.cumsum(0),
    "less the first": lambda h: h - h[:1] / 2,
    "broadcast": lambda h: (h[:, None] + h).mean(1),
    "normalised": lambda h: (h - h.mean(0)) / 2,
    "attending to earlier": lambda h: (h @ h.T).tril().softmax(1) @ h,
}


@pytest.mark.parametrize("batch", [2, 3, 5])
@pytest.mark.parametrize("name", MIXED)
def test_mixed_samples_are_refused(name, batch):
    model = Model(lambda m, x: F.linear(MIXED[name](F.linear(x, m.w)).tanh(), m.u), **LAYERS)
    with pytest.raises(ModelError, match="do not depend on the rest of the batch"):
        gradient_norms(model, images(batch, 5) / 4)


def test_images_all_alike_hide_nothing():
    def mixing(m, x):
        h = F.linear(x, m.w)
        return F.linear((h - h.mean(0)).tanh(), m.u)

    model = Model(mixing, **LAYERS)
    with pytest.raises(ModelError, match="do not depend on the rest of the batch"):
        gradient_norms(model, torch.zeros(3, 5, dtype=torch.float64))


def test_a_model_that_does_something_else_is_proved_anew():
    def forward(m, x):
        h = F.linear(x, m.w).tanh()
        return F.linear(h.flip(m.axis).flip(m.axis) if m.axis else h.flip(0), m.u)

    model = Model(forward, **LAYERS)
    model.axis = 1
    hold_to_reference(model, images(3, 5))
    model.axis = 0
    with pytest.raises(ModelError, match="do not depend on the rest of the batch"):
        gradient_norms(model, images(3, 5))


def test_proofs_are_kept_up_to_a_number(monkeypatch):
    monkeypatch.setattr(batch_check, "MOST_KNOWN", 2)
    model = Model(folded, **LAYERS)
    for length in (2, 3, 4, 5):
        gradient_norms(model, images(3, length, 5))
    assert len(state_of(model).found[batch_check.checked_forward]) == 2


def test_a_proof_serves_until_something_changes():
    lengths = []

    def forward(m, x):
        lengths.append(len(x))
        return folded(m, x)

    model = Model(forward, **LAYERS)
    gradient_norms(model, images(5, 6, 5))
    lengths.clear()
    gradient_norms(model, images(5, 6, 5, seed=1))
    assert lengths == [5]


def test_logits_that_are_infinite_are_no_difference():
    def masked(m, x):
        logits = F.linear(x.softmax(1), m.u)
        return logits.masked_fill(torch.tensor([False, True, False, False]), -torch.inf)

    model = Model(masked, u=(4, 5))
    hidden = gradient_norms(model, images(3, 5), target="one-hot").norms
    assert hidden.isfinite().all()


@pytest.mark.parametrize("batch", [2, 5, 9, 70])
def test_many_samples_are_told_apart(batch):
    model = Model(
        lambda m, x: F.linear(F.linear(x.roll(1, 0), m.w).tanh().roll(-1, 0), m.u), **LAYERS
    )
    assert hold_to_reference(model, images(batch, 5))["w"] == "reference"
