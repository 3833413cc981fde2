"""Shards that are alike are looked at by HDF5 once; one that differs is looked at anew."""

import h5py
import numpy as np
import pytest
from helpers.hostile_run import accept

from gradscore.errors import RunError
from gradscore.run import RunInfo, RunStore, SetInfo, chunks
from gradscore.run.layout import HeadInfo

ROWS = 8


@pytest.fixture
def looked_at(monkeypatch):
    """The files that HDF5 has looked at."""
    seen, real = [], chunks._find
    monkeypatch.setattr(chunks, "_find", lambda *what: seen.append(what) or real(*what))
    return seen


def write(path, shards, paths=lambda start: [f"a/{start + k:03d}" for k in range(ROWS)]):
    head = HeadInfo("fc", ("fc.weight",), None, False)
    info = RunInfo("m", None, "a" * 64, {}, "float32", 2, 3, (3, 8, 8), head, {}, {})
    draw = np.random.default_rng(0)
    rows, start = [], 0
    with RunStore.create(path, info) as store:
        store.add_set(SetInfo("a", "id", "x", "0" * 64, sum(shards)))
        for count in shards:
            base = {
                "index": np.arange(start, start + count),
                "path": np.array(paths(start)[:count], dtype=object),
                "label": np.arange(count),
                "features": draw.standard_normal((count, 3), np.float32),
                "logits": draw.standard_normal((count, 2), np.float32),
            }
            store.add_shards("a", {"base": base}, (start, start + count))
            rows.append(base)
            start += count
    return {name: np.concatenate([base[name] for base in rows]) for name in rows[0]}


def read(path):
    blocks = list(RunStore(path).blocks("a"))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


@pytest.mark.parametrize(
    ("shards", "asked"),
    [((ROWS, ROWS, ROWS), 1), ((ROWS, ROWS, 5), 2), ((5, ROWS, ROWS, 5), 3)],
    ids=["all alike", "a shorter one at the end", "changing sizes"],
)
def test_hdf5_is_asked_once_for_shards_that_are_alike(tmp_path, looked_at, shards, asked):
    written = write(tmp_path / "run", shards)
    found = read(tmp_path / "run")
    assert len(looked_at) == asked
    for name, values in written.items():
        assert np.array_equal(found[name], values), name


def test_a_shard_of_longer_texts_is_looked_at_anew(tmp_path, looked_at):
    written = write(
        tmp_path / "run", (ROWS, ROWS), lambda start: ["x" * (1 + start // ROWS)] * ROWS
    )
    assert read(tmp_path / "run")["path"].tolist() == written["path"].tolist()
    assert len(looked_at) == 2


def test_what_is_known_of_one_shard_does_not_make_a_forged_one_sound(tmp_path):
    run, second = tmp_path / "run", "a/base/shard-00001.h5"
    write(run, (ROWS, ROWS))
    content = (run / second).read_bytes()
    with h5py.File(run / second) as file:
        place = file["logits"].id.get_chunk_info(0).byte_offset.to_bytes(8, "little")
    assert content.count(place) == 1
    behind = (len(content) - 1).to_bytes(8, "little")
    (run / second).write_bytes(content.replace(place, behind))
    accept(run, second)
    with pytest.raises(RunError, match=r"shard-00001\.h5 is damaged: a chunk lies behind its end"):
        read(run)


@pytest.mark.parametrize("text", ["a\0b", "ü/\udcff", "", "a\n\x1b"])
def test_texts_are_read_as_they_were_written(tmp_path, text):
    texts = ["plain", text, "x" * 9, *["y"] * (ROWS - 3)]
    write(tmp_path / "run", (ROWS,), lambda start: texts)
    assert read(tmp_path / "run")["path"].tolist() == texts
