"""A run of chosen rows: which they are, and in how many blocks they come."""

import numpy as np
import pytest
from helpers.recorded_run import make_run

import gradscore.methods.part_of_run as part_of_run
from gradscore.methods.memory_run import FeatureRun
from gradscore.methods.part_of_run import Chosen, PartOfRun
from gradscore.run import RunStore

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


@pytest.mark.parametrize("keep", [False, True])
def test_wide_rows_come_in_fewer_at_once(run, keep, monkeypatch):
    monkeypatch.setattr("gradscore.run.blocks.BLOCK_BYTES", 20 * 4 * (4 + 3))
    mask = np.arange(ROWS) % 2 == 0
    part = PartOfRun(run, {"a": ("id", [Chosen("a", mask)])}, keep=keep)
    sizes = {
        fields: [len(block["index"]) for block in part.blocks("a", fields)]
        for fields in (("features", "logits"), ("logits",), ("label",))
    }
    assert sizes[("features", "logits")] == [16] * 31 + [4]
    assert sizes[("logits",)] == [32] * 15 + [20]
    assert sizes[("label",)] == [500]


def test_what_is_chosen_whole_is_not_copied(run):
    part = PartOfRun(run, {"a": ("id", [Chosen("a")])})
    blocks = list(part.blocks("a", ("features",), rows=500))
    assert all(np.shares_memory(b["features"], run._rows["a"]["features"]) for b in blocks)


def test_a_set_of_which_nothing_is_chosen_has_no_block(run):
    part = PartOfRun(run, {"a": ("id", [Chosen("a", np.zeros(ROWS, bool))])})
    assert list(part.blocks("a")) == []
    assert part.sets["a"].recorded() == 0


@pytest.fixture
def asked(run, monkeypatch):
    """The sets whose rows are read from the other run, one name a read."""
    names, read = [], run.blocks
    monkeypatch.setattr(run, "blocks", lambda name, *how: names.append(name) or read(name, *how))
    return names


def read(part, rows=64):
    fields = ("index", "label", "path", "features", "logits")
    blocks = list(part.blocks("a", fields, rows=rows))
    return {name: np.concatenate([block[name] for block in blocks]) for name in fields}


def test_rows_that_are_kept_are_found_once(run, asked):
    mask = np.random.default_rng(1).random(ROWS) < 0.1
    sets = {"a": ("id", [Chosen("a", mask)])}
    once, kept = PartOfRun(run, sets), PartOfRun(run, sets, keep=True)
    for rows in (64, 7, 4096):
        for name, values in read(kept, rows).items():
            np.testing.assert_array_equal(values, read(once)[name])
            assert values.dtype == read(once)[name].dtype
    assert list(next(iter(kept.blocks("a", ("logits",))))) == ["index", "logits"]
    asked.clear()
    read(kept)
    assert asked == []


def test_whole_sets_and_large_ones_are_read_where_they_are(run, asked, monkeypatch):
    mask = np.arange(ROWS) % 10 == 0
    for sets, most in (([Chosen("a")], 1 << 30), ([Chosen("a", mask)], 1000)):
        monkeypatch.setattr(part_of_run, "LARGEST_KEPT", most)
        part = PartOfRun(run, {"a": ("id", sets)}, keep=True)
        read(part)
        asked.clear()
        read(part)
        assert asked == ["a"]


def test_where_the_disk_is_full_rows_are_found_again(run, asked, monkeypatch):
    def full(*how):
        raise OSError(28, "No space left on device")

    mask = np.arange(ROWS) % 10 == 0
    part = PartOfRun(run, {"a": ("id", [Chosen("a", mask)])}, keep=True)
    monkeypatch.setattr("os.pwrite", full)
    np.testing.assert_array_equal(read(part)["index"], np.flatnonzero(mask))
    asked.clear()
    read(part)
    assert asked == ["a"]


def test_passes_of_a_kept_set_are_those_that_are_asked(tmp_path):
    store = RunStore(make_run(tmp_path / "run"))
    mask = np.arange(store.sets["digits"].rows) % 3 == 0
    sets = {"digits": ("id", [Chosen("digits", mask)])}
    once, kept = PartOfRun(store, sets), PartOfRun(store, sets, keep=True)
    for norms in ((), tuple(store.info.passes)):
        (got,), (expected,) = (
            list(one.blocks("digits", ("logits",), norms)) for one in (kept, once)
        )
        assert len(got) == 2 + len(norms)
        assert list(got) == list(expected)
        for array, values in expected.items():
            np.testing.assert_array_equal(got[array], values)
