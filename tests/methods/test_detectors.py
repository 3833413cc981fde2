"""Post-hoc detectors against literal transcriptions, whatever blocks the rows come in."""

import numpy as np
import pytest
import torch
from helpers import detectors as literal

from gradscore.errors import InvalidArgument
from gradscore.methods.activation import ash, fit_react, react, scale
from gradscore.methods.boundary import fdbd, fit_fdbd
from gradscore.methods.confidence import gen
from gradscore.methods.laplace import (
    evidence,
    fit_laplace,
    fitted_stages,
    head_distance,
    laplace_energy,
    laplace_energy_blocks,
    stage_distance,
)
from gradscore.methods.neighbours import fit_knn, fit_nnguide, knn, nnguide
from gradscore.methods.rows import FEWEST, LastLayer, Rows, drawn_places, fold_of
from gradscore.methods.subspace import default_dimension, fit_vim, vim

FEATURES, CLASSES, CHANNELS = 12, 5, (4, 6)


def drawn(count, seed, classes=CLASSES, shift=0.0):
    """Return features, logits, block means and the last layer, float32 values."""
    rng = np.random.default_rng(99)
    w, b = rng.normal(size=(classes, FEATURES)), rng.normal(size=classes)
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(count, FEATURES)) + 0.5 + shift, 0).astype(np.float32)
    blocks = [(rng.normal(size=(count, c)) + shift).astype(np.float32) for c in CHANNELS]
    f = (x @ w.T + b).astype(np.float32)
    return x, f, blocks, w, b


def rows_of(x, f, blocks=()):
    named = {f"block{k + 1}": torch.from_numpy(h) for k, h in enumerate(blocks)}
    return Rows(torch.from_numpy(x), torch.from_numpy(f), named)


def source(rows, size=7):
    return lambda: iter([rows[slice(k, k + size)] for k in range(0, len(rows), size)])


X0, F0, H0, W, B = drawn(60, 0)
X, F, H, *_ = drawn(9, 1, shift=0.3)
HEAD = LastLayer(torch.from_numpy(W), torch.from_numpy(B))
ID, ROWS = rows_of(X0, F0, H0), rows_of(X, F, H)
STAGES = ("block1", "block2")
D = [a.astype(np.float64) for a in (X, F, X0, F0)]
HD, HD0 = ([h.astype(np.float64) for h in blocks] for blocks in (H, H0))

CASES = {
    "knn": (
        lambda: knn(ROWS, fit_knn(source(ID)), k=3),
        lambda: literal.knn(D[0], D[2], 3),
    ),
    "nnguide": (
        lambda: nnguide(ROWS, fit_nnguide(source(ID)), k=4),
        lambda: literal.nnguide(*D, 4),
    ),
    "react": (
        lambda: react(ROWS, fit_react(source(ID)), HEAD),
        lambda: literal.react(D[0], D[2], W, B),
    ),
    "ash": (lambda: ash(ROWS, HEAD), lambda: literal.ash_s(D[0], W, B)),
    "scale": (lambda: scale(ROWS, HEAD), lambda: literal.scale(D[0], W, B)),
    "vim": (
        lambda: vim(ROWS, fit_vim(source(ID), HEAD, dimension=4)),
        lambda: literal.vim(*D, W, B, 4),
    ),
    "gen": (lambda: gen(ROWS.logits), lambda: literal.gen(D[1])),
    "gen of few": (
        lambda: gen(ROWS.logits, gamma=0.5, largest=2),
        lambda: literal.gen(D[1], 0.5, 2),
    ),
    "fdbd": (
        lambda: fdbd(ROWS, fit_fdbd(source(ID)), HEAD),
        lambda: literal.fdbd(D[0], D[1], D[2], W),
    ),
    "laplace_energy": (
        lambda: laplace_energy(ROWS, fit_laplace(source(ID))),
        lambda: literal.laplace_energy(*D),
    ),
    "laplace_energy clipped": (
        lambda: laplace_energy(ROWS, fit_laplace(source(ID), clip=80, head=HEAD), head=HEAD),
        lambda: literal.over(
            literal.evidence(
                *(np.minimum(x, np.percentile(D[2], 80)) @ W.T + B for x in (D[0], D[2]))
            ),
            literal.head_distance(D[0], D[2]),
        ),
    ),
    "laplace_energy_blocks": (
        lambda: laplace_energy_blocks(ROWS, fit_laplace(source(ID), stages=STAGES)),
        lambda: literal.laplace_energy_blocks(*D[:2], HD, *D[2:], HD0),
    ),
    "laplace_energy_blocks two-sided": (
        lambda: laplace_energy_blocks(
            ROWS, fit_laplace(source(ID), stages=STAGES), two_sided=True
        ),
        lambda: literal.laplace_energy_blocks(*D[:2], HD, *D[2:], HD0, two_sided=True),
    ),
}


@pytest.mark.parametrize(("ours", "theirs"), CASES.values(), ids=CASES.keys())
def test_is_the_papers(ours, theirs):
    np.testing.assert_allclose(ours(), theirs(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1, 25, 60])
def test_blocks_of_rows_do_not_matter(size):
    one = fit_laplace(source(ID, size), stages=STAGES, clip=90, head=HEAD)
    other = fit_laplace(source(ID), stages=STAGES, clip=90, head=HEAD)
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-12)


FITS = {
    "knn": fit_knn,
    "nnguide": fit_nnguide,
    "react": fit_react,
    "fdbd": fit_fdbd,
    "vim": lambda s: fit_vim(s, HEAD),
    "laplace_energy": fit_laplace,
}


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS.keys())
def test_few_images_are_refused(fit):
    with pytest.raises(InvalidArgument, match=f"at least {FEWEST} images to fit to, got 29"):
        fit(source(ID[slice(29)]))
    fit(source(ID[slice(30)]))


def test_the_bank_is_limited_and_spread(monkeypatch):
    monkeypatch.setattr("gradscore.methods.neighbours.BANK", 20)
    bank = fit_knn(source(ID))["bank"]
    kept = drawn_places(len(ID.features), 20)
    assert len(set(kept.tolist())) == 20
    assert (np.diff(np.diff(kept)) != 0).any()
    expected = torch.nn.functional.normalize(ID.features[kept].double(), dim=1).float()
    torch.testing.assert_close(bank, expected)


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 100])
def test_classes_in_turn_are_in_both_folds(classes):
    places = np.arange(50 * classes)
    folds = fold_of(places).numpy()
    assert set(folds.tolist()) == {0, 1}
    for label in range(classes):
        assert 8 <= folds[places % classes == label].sum() <= 42


def test_folds_are_of_one_size_and_depend_on_places_alone():
    folds = fold_of(range(1000)).numpy()
    assert (folds[::2] + folds[1::2] == 1).all()
    assert 200 < folds[::2].sum() < 300
    np.testing.assert_array_equal(fold_of(np.arange(1000)[300:]).numpy(), folds[300:])
    assert folds.tolist() == [literal.fold_of(place) for place in range(1000)]


def test_a_bank_in_parts_is_a_bank(monkeypatch):
    fit = fit_knn(source(ID))
    whole = knn(ROWS, fit, k=11)
    monkeypatch.setattr("gradscore.methods.neighbours.PART", 8)
    torch.testing.assert_close(knn(ROWS, fit, k=11), whole)


@pytest.mark.parametrize("k", [0, 61])
def test_more_neighbours_than_there_are_is_refused(k):
    with pytest.raises(InvalidArgument, match=f"k of 1 to 60, the images fitted to, got {k}"):
        knn(ROWS, fit_knn(source(ID)), k=k)


def test_a_subspace_without_residual_is_refused():
    with pytest.raises(InvalidArgument, match="dimension of 0 to 11, got 12"):
        fit_vim(source(ID), HEAD, dimension=12)
    assert [default_dimension(m) for m in (64, 768, 2048)] == [32, 512, 1000]


def test_features_that_are_all_zero_have_scores():
    zero = Rows(torch.zeros(2, FEATURES), HEAD(torch.zeros(2, FEATURES)).float())
    for scores in (
        ash(zero, HEAD),
        scale(zero, HEAD),
        knn(zero, fit_knn(source(ID))),
        nnguide(zero, fit_nnguide(source(ID))),
    ):
        assert scores.isfinite().all()


def test_classes_of_equal_weights_have_no_boundary():
    weight = HEAD.weight.clone()
    weight[1] = weight[0]
    fit = fit_fdbd(source(ID))
    some = fdbd(ROWS, fit, LastLayer(weight, HEAD.bias))
    assert some.isfinite().all()
    same = LastLayer(weight[:1].expand_as(weight), HEAD.bias)
    assert fdbd(ROWS, fit, same).tolist() == [0.0] * len(ROWS)


def test_certain_predictions_keep_an_entropy():
    logits = torch.tensor([[0.0, -40.0], [0.0, -50.0], [0.0, -1e4]])
    found = gen(logits).tolist()
    expected = [-2 * np.exp(-4.0), -2 * np.exp(-5.0), 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_score_falls_with_the_distance_whatever_the_sign_of_the_evidence():
    fit = fit_laplace(source(ID), stages=STAGES)
    steps = torch.linspace(0, 8, 9)[:, None]
    features = fit["mean"] + steps
    blocks = {s: fit[f"{s}.mean"] + 0.5 + steps.expand(-1, len(fit[f"{s}.mean"])) for s in STAGES}
    for logit in (-50.0, 50.0):
        rows = Rows(features, torch.full((9, CLASSES), logit), blocks)
        assert evidence(rows, fit).sign().unique().tolist() == [np.sign(logit)]
        for scores in (laplace_energy(rows, fit), laplace_energy_blocks(rows, fit)):
            assert scores.diff().lt(0).all()


def test_the_score_rises_with_the_evidence_through_zero():
    fit = fit_laplace(source(ID), stages=STAGES)
    logits = torch.linspace(-9, 9, 181)[:, None].expand(-1, CLASSES)
    blocks = {s: ROWS.blocks[s][:1].expand(181, -1) for s in STAGES}
    rows = Rows(ROWS.features[:1].expand(181, -1), logits, blocks)
    for scores in (laplace_energy(rows, fit), laplace_energy_blocks(rows, fit)):
        assert scores.diff().gt(0).all()


def test_masked_classes_are_left_out():
    masked = F0.copy()
    masked[:, 3] = -1e9
    masked[:20, 1] = -1e9  # not most of the time
    fit = fit_laplace(source(rows_of(X0, masked)))
    assert fit["kept"].tolist() == [True, True, True, False, True]
    rows = rows_of(X, np.where(np.arange(CLASSES) == 3, np.float32(-1e9), F))
    kept = [0, 1, 2, 4]
    f0 = masked.astype(np.float64)
    expected = literal.evidence(D[1][:, kept], f0[:, kept])
    np.testing.assert_allclose(evidence(rows, fit), expected, rtol=1e-9)


def test_a_channel_or_a_stage_that_never_varies_is_left_out():
    blocks = [H0[0].copy(), np.ones_like(H0[1])]
    blocks[0][:, 2] = 0.1
    fit = fit_laplace(source(rows_of(X0, F0, blocks)), stages=STAGES)
    assert fitted_stages(fit) == ["block1"]
    kept = [0, 1, 3]
    expected = literal.stage_distance([HD[0][:, kept]], [HD0[0][:, kept]])
    np.testing.assert_allclose(stage_distance(ROWS, fit), expected, rtol=1e-6)


def test_more_channels_than_images():
    rng = np.random.default_rng(5)
    wide, few = (rng.normal(size=(n, 90)).astype(np.float32) for n in (40, 3))
    fit = fit_laplace(source(rows_of(X0[:40], F0[:40], [wide])), stages=("block1",))
    rows = rows_of(X[:3], F[:3], [few])
    expected = literal.stage_distance([few.astype(float)], [wide.astype(float)])
    np.testing.assert_allclose(stage_distance(rows, fit), expected, rtol=1e-6)


def test_an_input_at_the_mean_has_a_distance_above_zero():
    fit = fit_laplace(source(ID), stages=STAGES)
    blocks = {s: fit[f"{s}.mean"][None] for s in STAGES}
    rows = Rows(fit["mean"][None], ROWS.logits[:1], blocks)
    assert stage_distance(rows, fit).item() == pytest.approx(1e-6, rel=1e-3)
    assert head_distance(rows.features, fit).item() == 1.0


def test_features_that_never_vary_are_refused():
    constant = Rows(torch.ones(40, 3), torch.randn(40, 2))
    with pytest.raises(InvalidArgument, match="features that vary over the images to fit to"):
        fit_laplace(source(constant))


@pytest.mark.parametrize("classes", [2, 3, 6, 10, 1000])
def test_any_number_of_classes(classes):
    x0, f0, h0, w, b = drawn(40, 2, classes)
    x, f, h, *_ = drawn(6, 3, classes)
    head = LastLayer(torch.from_numpy(w), torch.from_numpy(b))
    rows, known = rows_of(x, f, h), source(rows_of(x0, f0, h0))
    np.testing.assert_allclose(gen(rows.logits), literal.gen(f.astype(float)), rtol=1e-6)
    fit = fit_laplace(known, stages=STAGES)
    for scores in (
        laplace_energy_blocks(rows, fit),
        fdbd(rows, fit_fdbd(known), head),
        vim(rows, fit_vim(known, head)),
    ):
        assert scores.isfinite().all()
