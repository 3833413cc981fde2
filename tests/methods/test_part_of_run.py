"""A run of chosen rows: which they are, and in how many blocks they come."""

import numpy as np
import pytest

from gradscore.methods.memory_run import FeatureRun
from gradscore.methods.part_of_run import Chosen, PartOfRun

ROWS = 1000


@pytest.fixture
def run():
    draw = np.random.default_rng(0)
    whole = FeatureRun(draw.normal(size=(3, 4)).astype(np.float32))
    for name in ("a", "b"):
        whole.add_set(name, "id", draw.normal(size=(ROWS, 4)).astype(np.float32))
    return whole


@pytest.mark.parametrize("every", [1, 2, 50], ids=["all", "a half", "a few"])
def test_chosen_rows_come_in_order_and_in_whole_blocks(run, every):
    mask = np.arange(ROWS) % every == 0
    part = PartOfRun(run, {"both": ("id", [Chosen("a", mask), Chosen("b", mask)])})
    blocks = list(part.blocks("both", ("index", "features", "path"), rows=16))
    count = 2 * int(mask.sum())
    assert [len(block["index"]) for block in blocks[:-1]] == [16] * (len(blocks) - 1)
    assert sum(len(block["index"]) for block in blocks) == count
    for field in ("index", "features", "path"):
        expected = np.concatenate([run._rows[name][field][mask] for name in ("a", "b")])
        np.testing.assert_array_equal(np.concatenate([b[field] for b in blocks]), expected)


def test_what_is_chosen_whole_is_not_copied(run):
    part = PartOfRun(run, {"a": ("id", [Chosen("a")])})
    blocks = list(part.blocks("a", ("features",), rows=500))
    assert all(np.shares_memory(b["features"], run._rows["a"]["features"]) for b in blocks)


def test_a_set_of_which_nothing_is_chosen_has_no_block(run):
    part = PartOfRun(run, {"a": ("id", [Chosen("a", np.zeros(ROWS, bool))])})
    assert list(part.blocks("a")) == []
    assert part.sets["a"].recorded() == 0
