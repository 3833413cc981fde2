"""No sample's numbers depend on the rest of the batch; models in which they do are refused."""

import pytest
import torch
from helpers.small_models import Model, hold_to_reference, images
from torch import nn
from torch.nn import functional as F

import gradscore as gs
from gradscore.errors import GradScoreWarning, ModelError
from gradscore.models.preprocessing import Preprocessing
from gradscore.network import check_independence, comparison, state_of
from gradscore.network import independence as module
from gradscore.network.comparison import EVERY, NONE, SOME
from gradscore.reference import one_backward_a_sample

LAYERS = {"w": (5, 6), "u": (4, 5)}
REFUSED = "do not depend on the rest of the batch"
SIZES = (1, 2, 3, 5, 8, 17)
TYPES = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 2e-2,
}


def capacity(h, most):
    """Let an expert take the first samples that choose it, and no more."""
    chosen = h[:, 0] > 0
    taken = chosen & (chosen.cumsum(0) <= most)
    return torch.where(taken[:, None], h * 2, h)


def straight_through(h):
    scale = h.abs().max() / 7
    return h + ((h / scale).round() * scale - h).detach()


def quantised(h):
    scale = h.abs().max().detach() / 127
    return (h / scale).round().clamp(-127, 127) * scale + 0 * h


MIXES = {
    "largest": lambda h: h / h.abs().max(),
    "largest, detached": lambda h: h / h.abs().max().detach(),
    "least": lambda h: h - h.min(),
    "mean": lambda h: h - h.mean(0),
    "mean, detached": lambda h: h - h.mean(0).detach(),
    "mean of all": lambda h: h - h.mean() / 8,
    "median": lambda h: h - h.median(0).values,
    "spread": lambda h: h / (h.std(0, correction=0) + 0.1),
    "rank": lambda h: h + h.argsort(0).argsort(0).to(h.dtype) / 99,
    "capacity": lambda h: capacity(h, 1),
    "place": lambda h: h + torch.arange(len(h)).to(h.dtype)[:, None] / 99,
    "number": lambda h: h * len(h) ** 0.5,
    "first": lambda h: h - h[:1] / 8,
    "last": lambda h: h - h[-1:] / 8,
    "one image": lambda h: h * (1 + (h[:, 0] > 1).any()),
    "straight through": straight_through,
    "quantised": quantised,
    "chance": lambda h: h + torch.rand_like(h) / 8,
}


def mixing(mix, inside):
    def forward(m, x):
        x = x if inside else mix(x)
        h = F.linear(x, m.w)
        return F.linear((mix(h) if inside else h).tanh(), m.u)

    return Model(forward, **LAYERS)


def norms_or_refused(model, x):
    """Return the norms, or None where the model is refused because its samples mix."""
    try:
        return gs.gradient_norms(model, x).norms
    except ModelError as error:
        if REFUSED not in str(error):
            raise
        return None


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("name", MIXES)
def test_each_is_refused_or_exact(name, inside, dtype):
    model = mixing(MIXES[name], inside).to(dtype)
    answered = []
    for batch in SIZES:
        x = images(batch, 6, seed=batch).to(dtype)
        state_of(model).found.clear()
        got = norms_or_refused(model, x)
        if got is None:
            continue
        answered.append(batch)
        expected = one_backward_a_sample(model, x).norms
        torch.testing.assert_close(got, expected, rtol=TYPES[dtype], atol=1e-6)
    # Alone, or where none is turned away, the numbers of a limited expert are right.
    assert answered == [] or name in ("capacity", "one image")


@pytest.mark.parametrize("dtype", TYPES)
def test_a_sound_model_is_answered(dtype):
    model = mixing(lambda h: h / h.abs().amax(1, keepdim=True), inside=True).to(dtype)
    for batch in SIZES:
        x = images(batch, 6, seed=batch).to(dtype)
        got, expected = gs.gradient_norms(model, x), one_backward_a_sample(model, x)
        torch.testing.assert_close(got.norms, expected.norms, rtol=TYPES[dtype], atol=1e-6)


WAYS = {
    "gradient norms": lambda model, x: gs.gradient_norms(model, x),
    "closed form": lambda model, x: gs.GradNorm(model)(x),
    "rules": lambda model, x: gs.GradNorm(model, layers="body.*")(x),
    "verify": lambda model, x: gs.verify(model, x),
}


class Net(nn.Module):
    """A network that mixes samples in one way, and what follows its last layer."""

    def __init__(self, mix=lambda h: h, follow=lambda f: f):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 5), nn.Linear(5, 4)
        self.mix, self.follow = mix, follow
        self.eval()

    def forward(self, x):
        return self.follow(self.head(torch.tanh(self.mix(self.body(x)))))


def masked(f):
    return f + torch.tensor([0.0, -1e4, 0, 0])


FOLLOW = {"plain": lambda f: f, "masked class": masked, "plus 1000": lambda f: f + 1000}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("follow", FOLLOW)
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_every_way_refuses_and_nothing_hides_it(way, follow, batch):
    mix = lambda h: h - h.mean(0) / 20  # noqa: E731
    x = images(batch, 6).float()
    WAYS[way](Net(follow=FOLLOW[follow]), x)
    with pytest.raises(ModelError, match=REFUSED):
        WAYS[way](Net(mix, FOLLOW[follow]), x)


def test_the_input_divided_by_its_largest_value_is_refused():
    model = Net()
    model.register_forward_pre_hook(lambda _, args: (args[0] / args[0].abs().max(),))
    for batch in SIZES:
        with pytest.raises(ModelError, match=REFUSED):
            gs.GradNorm(model)(images(batch, 6).float())


class Colours(nn.Module):
    """A network that takes the batch's mean colour off."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
        self.eval()

    def forward(self, x):
        x = x - x.mean((0, 2, 3), keepdim=True)
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("batch", [1, 4])
def test_the_mean_colour_of_a_batch_is_refused(batch):
    with pytest.raises(ModelError, match=REFUSED):
        gs.gradient_norms(Colours(), torch.rand(batch, 3, 8, 8))


@pytest.mark.parametrize(("batch", "layers"), [(1, "all"), (2, "all"), (3, "last")])
def test_extraction_records_nothing_of_a_batch(tmp_path, batch, layers):
    model = nn.Sequential(nn.Flatten(), Net(MIXES["largest"]))
    model[1].body = nn.Linear(64, 5)
    model.preprocessing = Preprocessing(None, None, (0.5,), (0.5,), mode="L")
    sets = {"digits": ("id", "digits:test")}
    with pytest.raises(ModelError, match=REFUSED):
        gs.extract(model.eval(), sets, tmp_path, batch_size=batch, layers=layers, limit=6)


def test_what_acts_on_large_batches_alone_is_seen_at_the_first_of_them():
    model = mixing(lambda h: h if len(h) < 12 else capacity(h, 3), inside=True)
    hold_to_reference(model, images(3, 6))
    for seed in range(3):
        with pytest.raises(ModelError, match=REFUSED):
            gs.gradient_norms(model, images(17, 6, seed=seed))


def routed(most):
    """A mixture of two experts of limited capacity, samples sent to them by index."""

    def forward(m, x):
        h = F.linear(x, m.w)
        rows = (h[:, 0] > 0).nonzero().squeeze(1)[:most]
        return F.linear(h.index_add(0, rows, h[rows]).tanh(), m.u)

    return Model(forward, **LAYERS)


def test_an_expert_that_overflows_for_some_batches_is_refused_for_those():
    model, refused = routed(4), 0
    for seed in range(12):
        x = images(6, 6, seed=seed)
        expected = one_backward_a_sample(model, x).norms
        got = norms_or_refused(model, x)
        if got is None:
            refused += 1
        else:
            torch.testing.assert_close(got, expected)
    assert refused


def gated(m, x):
    h = F.linear(x, m.w)
    return F.linear((h - m.gate * h.mean(0)).tanh(), m.u)


@pytest.mark.parametrize("open_it", [lambda g: g.fill_(1), lambda g: g.data.fill_(1)])
@pytest.mark.parametrize("way", ["gradient norms", "closed form"])
def test_a_gate_that_opens_is_seen(way, open_it):
    model = Model(gated, **LAYERS)
    model.register_buffer("gate", torch.zeros((), dtype=torch.float64))
    hold_to_reference(model, images(3, 6))
    WAYS[way](model, images(3, 6))
    open_it(model.gate)
    with pytest.raises(ModelError, match=REFUSED):
        WAYS[way](model, images(3, 6))


def test_the_gradient_of_a_closed_gate_is_refused_those_of_other_weights_are_not():
    model = Model(gated, **LAYERS)
    model.gate = nn.Parameter(torch.zeros((), dtype=torch.float64))
    x = images(3, 6)
    expected = one_backward_a_sample(model, x, layers=["w", "u"]).norms
    torch.testing.assert_close(gs.gradient_norms(model, x, layers=["w", "u"]).norms, expected)
    with pytest.raises(ModelError, match=REFUSED):
        gs.gradient_norms(model, x)


def test_a_head_of_zeros_hides_nothing():
    model = Net(lambda h: h - h.mean(0))
    nn.init.zeros_(model.head.weight)
    for way in ("gradient norms", "closed form"):
        with pytest.raises(ModelError, match=REFUSED):
            WAYS[way](model, images(3, 6).float())


class Tokens(nn.Module):
    """Token ids to logits, perhaps less the mean of the batch."""

    def __init__(self, mixes):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head, self.mixes = nn.Embedding(9, 5), nn.Linear(5, 4), mixes
        self.eval()

    def forward(self, ids):
        h = self.table(ids).mean(1)
        return self.head((h - h.mean(0) if self.mixes else h).tanh())


@pytest.mark.parametrize("batch", [2, 5])
def test_token_ids_keep_to_their_range(batch):
    ids = torch.randint(9, (batch, 6), generator=torch.Generator().manual_seed(0))
    hold_to_reference(Tokens(False).double(), ids)
    with pytest.raises(ModelError, match=REFUSED):
        gs.gradient_norms(Tokens(True), ids)


def test_whole_numbers_divided_by_the_largest_are_refused_at_a_later_size():
    model = Model(lambda m, x: F.linear(F.linear(x / x.max(), m.w).tanh(), m.u), **LAYERS)
    x = torch.randint(1, 255, (4, 6), generator=torch.Generator().manual_seed(0)).double().long()
    model.run = lambda m, x: F.linear(F.linear(x.double() / x.max(), m.w).tanh(), m.u)
    gs.gradient_norms(model, x[:1])
    with pytest.raises(ModelError, match=REFUSED):
        gs.gradient_norms(model, x)


def test_a_model_of_one_batch_size_is_compared_with_itself():
    def fixed(mixes):
        def forward(m, x):
            h = F.linear(x.reshape(4, 6), m.w)
            return F.linear((h - h.mean(0) if mixes else h).tanh(), m.u)

        return Model(forward, **LAYERS)

    check_independence(fixed(False), images(4, 6))
    with pytest.raises(ModelError, match=REFUSED):
        check_independence(fixed(True), images(4, 6))


class SingleOnly(nn.Module):
    """A network that runs in single precision alone."""

    def __init__(self, mixes=False):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.mixes = nn.Linear(6, 5), nn.Linear(5, 4), mixes
        self.eval()

    def forward(self, x):
        if x.dtype != torch.float32:
            raise TypeError("expected single precision")
        h = self.body(x)
        return self.head((h - h.mean(0) if self.mixes else h).tanh())


def test_what_does_not_run_in_float64_is_checked_in_its_own_type_and_told_once():
    model, x = SingleOnly(), images(3, 6).float()
    with pytest.warns(GradScoreWarning, match="does not run in float64: expected single"):
        gs.gradient_norms(model, x)
    gs.gradient_norms(model, x)
    with pytest.raises(ModelError, match=REFUSED):
        gs.gradient_norms(SingleOnly(True), x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch", [2, 5])
def test_dynamically_quantised_bodies_are_refused(batch):
    quantised = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16)), dtype=torch.qint8
    )
    model = nn.Sequential(quantised, nn.Linear(16, 4)).eval()
    x = images(batch, 6).float() * torch.linspace(0.2, 3, batch)[:, None]
    with pytest.raises(ModelError, match=REFUSED):
        gs.GradNorm(model)(x)


def test_single_precision_within_a_model_is_no_mixing():
    def forward(m, x):
        h = F.linear(x, m.w).float().softmax(1, dtype=torch.float32).to(x.dtype)
        return F.linear(h + torch.zeros(5), m.u)

    model = Model(forward, **LAYERS)
    check_independence(model, images(5, 6))


def test_a_second_size_takes_four_forwards_and_later_batches_one():
    sizes = []

    def forward(m, x):
        sizes.append(len(x))
        return F.linear(F.linear(x, m.w).tanh(), m.u)

    model = Model(forward, **LAYERS)
    gs.gradient_norms(model, images(6, 6), layers=["w"])
    for batch in (9, 4):
        sizes.clear()
        gs.gradient_norms(model, images(batch, 6), layers=["w"])
        assert len(sizes) <= 4
        sizes.clear()
        gs.gradient_norms(model, images(batch, 6, seed=1), layers=["w"])
        assert sizes == [batch]


def test_chance_is_left_as_it_was():
    model, x = Net(), images(3, 6).float()
    before = torch.get_rng_state()
    gs.gradient_norms(model, x)
    gs.GradNorm(model)(x)
    assert torch.equal(before, torch.get_rng_state())


def test_images_that_are_not_numbers_prove_nothing():
    model = mixing(MIXES["mean"], inside=True)
    check_independence(model, images(3, 6) * float("nan"))
    with pytest.raises(ModelError, match=REFUSED):
        check_independence(model, images(3, 6))


def test_what_was_tried_is_known_by_the_state(monkeypatch):
    model, x = Net(), images(3, 6).float()
    check_independence(model, x)
    monkeypatch.setattr(module, "float64_copy", None)
    check_independence(model, x + 1)


@pytest.mark.parametrize(("by_itself", "alone"), [(SOME, 4), (EVERY, 6), (NONE, 0)])
def test_of_large_samples_some_are_run_by_themselves_and_all_where_asked(
    by_itself, alone, monkeypatch
):
    sizes = []

    def forward(m, x):
        sizes.append(len(x))
        return F.linear(F.linear(x, m.w).tanh(), m.u)

    monkeypatch.setattr(comparison, "ALONE_VALUES", 0)
    assert comparison.Comparison(Model(forward, **LAYERS)).difference(images(6, 6), by_itself) == 0
    assert sizes.count(1) == alone


@pytest.mark.parametrize("batch", [2, 5])
def test_images_that_keep_to_a_range_are_compared_within_it(batch):
    def forward(m, x):
        assert x.min() >= 0
        assert x.max() <= 1
        return F.linear(F.linear(x / x.max(), m.w).tanh(), m.u)

    with pytest.raises(ModelError, match=REFUSED):
        check_independence(Model(forward, **LAYERS), images(batch, 6).sigmoid())


class Trimmed(nn.Module):
    """Cut the padding of a batch of tokens to its longest sequence."""

    def __init__(self, pool):
        super().__init__()
        self.embedding, self.head, self.pool = (
            nn.Embedding(20, 6, padding_idx=0),
            nn.Linear(6, 5),
            pool,
        )

    def forward(self, tokens):
        tokens = tokens[:, : int((tokens != 0).sum(1).max())]
        return self.head(getattr(self.embedding(tokens), self.pool)(1))


def tokens_with_padding():
    full = torch.randint(1, 20, (8, 7), generator=torch.Generator().manual_seed(0))
    mixed = full.clone()
    mixed[::2, 3:] = 0
    return full, mixed


@pytest.mark.parametrize("ask", [gs.gradient_norms, lambda model, x: gs.GradNorm(model)(x)])
def test_padding_that_only_a_later_batch_has_is_seen(ask):
    full, mixed = tokens_with_padding()
    model = Trimmed("mean").double().eval()
    ask(model, full)
    with pytest.raises(ModelError, match="depend on the rest of the batch"):
        ask(model, mixed)


def test_padding_that_counts_for_nothing_is_exact():
    _, mixed = tokens_with_padding()
    model = Trimmed("sum").double().eval()
    torch.testing.assert_close(
        gs.gradient_norms(model, mixed).norms, one_backward_a_sample(model, mixed).norms
    )


def test_a_branch_that_some_rows_take_for_all_is_seen_in_each_batch():
    class Bright(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x) * (2.0 if bool((x[:, 0] > 2).any()) else 1.0)

    model, dim = Bright().double().eval(), torch.rand(4, 4, dtype=torch.float64)
    bright = dim + 3
    for batch in (dim, bright, torch.cat([bright[:2], dim[2:]])):
        try:
            found = gs.gradient_norms(model, batch).norms
        except ModelError:
            continue
        torch.testing.assert_close(found, one_backward_a_sample(model, batch).norms)


def test_what_only_bright_rows_take_of_their_neighbour_is_seen_in_dim_ones():
    class Leaking(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return self.linear(x + (x[:, :1] > 2) * x.roll(1, 0))

    with pytest.raises(ModelError, match="depend on the rest of the batch"):
        gs.gradient_norms(Leaking().eval(), torch.rand(4, 4))


@pytest.mark.parametrize("change", ["attribute", "class", "global"])
def test_changes_outside_of_the_instance_are_seen(change, monkeypatch):
    class Plain(nn.Module):
        share = 0.0

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            out = self.linear(x)
            return out + (self.share + OUTSIDE) * out.flip(0)

    class Mixing(Plain):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    model, x = Plain().eval(), torch.randn(4, 4)
    gs.gradient_norms(model, x)
    if change == "attribute":
        Plain.share = 0.5
    elif change == "class":
        model.__class__ = Mixing
    else:
        monkeypatch.setitem(globals(), "OUTSIDE", 0.5)
    with pytest.raises(ModelError, match="depend on the rest of the batch"):
        gs.gradient_norms(model, x)


OUTSIDE = 0.0
