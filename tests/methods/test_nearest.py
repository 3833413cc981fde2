"""Nearest rows of a bank: exactly those that all products in double precision give."""

import pytest
import torch
from torch.nn.functional import normalize

from gradscore.methods import nearest, neighbours

ROWS, BANK, COLUMNS, K = 40, 700, 24, 10


def drawn(kind):
    """Return vectors of length 1 and a bank, as recorded features give them."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ROWS, COLUMNS, generator=generator)
    bank = torch.randn(BANK, COLUMNS, generator=generator)
    if kind == "weighted":
        bank = normalize(bank) * torch.linspace(-300, 4000, BANK)[:, None]
    elif kind == "nearly equal":  # apart by less than single precision can tell
        bank = features[:1] + 1e-7 * bank
    elif kind == "equal":
        bank = features[:1].repeat(BANK, 1)
    elif kind == "few are equal":
        bank = features.repeat_interleave(BANK // ROWS, 0)
    elif kind == "one-hot":
        features = torch.eye(COLUMNS)[torch.arange(ROWS) % COLUMNS]
        bank = torch.eye(COLUMNS)[torch.arange(BANK) % COLUMNS]
    elif kind == "zeros":
        features = torch.zeros(ROWS, COLUMNS)
    return normalize(features.double(), dim=1), bank if kind == "weighted" else normalize(bank)


KINDS = ["any", "weighted", "nearly equal", "equal", "few are equal", "one-hot", "zeros"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [0, 2, nearest.MOST_CANDIDATES])
def test_products_are_the_largest_of_all(kind, most, monkeypatch):
    monkeypatch.setattr(nearest, "MOST_CANDIDATES", most)
    monkeypatch.setattr(nearest, "SHARED", 16)  # several steps, the last one short
    monkeypatch.setattr(nearest, "ENTRIES", 500)
    vectors, bank = drawn(kind)
    assert nearest.pays(vectors, bank, K)
    got = nearest.largest_products(vectors, bank, K)
    expected = (vectors @ bank.double().T).topk(K, dim=1).values
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-15 * float(bank.abs().max()))


def test_few_rows_small_banks_and_gradients_take_all_products():
    vectors, bank = drawn("any")
    assert not nearest.pays(vectors[:31], bank, K)
    assert not nearest.pays(vectors, bank[:639], K)
    assert not nearest.pays(vectors, bank, 11)
    assert not nearest.pays(vectors.requires_grad_(), bank, K)


def test_scores_by_neighbours_are_the_same_either_way(monkeypatch):
    vectors, bank = drawn("any")
    fast = neighbours._largest_products(vectors.float(), bank, K)
    called = []
    monkeypatch.setattr(nearest, "pays", lambda *how: called.append(how))
    slow = neighbours._largest_products(vectors.float(), bank, K)
    assert called
    torch.testing.assert_close(fast, slow, rtol=1e-13, atol=1e-14)
