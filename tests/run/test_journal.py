"""The journal: a shard adds one line, whatever the run's size; and no line is believed."""

import json

import numpy as np
import pytest
from helpers.recorded_run import base_rows
from test_run import make_info

from gradscore.errors import RunError
from gradscore.run import FailedRow, PassInfo, RunStore, SetInfo, check
from gradscore.run.names import JOURNAL_FILE

NORMS = "norms-uniform-T1-p1"
ROWS = 10


def killed(path, steps):
    """Write a run of some shards of ten rows, and end as where the process is killed."""
    store = RunStore.create(path, make_info())
    store.add_pass(PassInfo(NORMS, "norms", "uniform", 1.0, 1.0, "rules", ("fc.weight",)))
    store.add_set(SetInfo("digits", "id", "x", "00", ROWS * 20))
    for step in range(steps):
        add(store, step)
    store._journal = None  # nothing is folded
    store.close()
    return path


def add(store, step):
    start = ROWS * step
    index = [i for i in range(start, start + ROWS) if i != 25]
    failed = [FailedRow(25, "25.png", "truncated")] if start == 20 else []
    arrays = {
        "base": base_rows(index),
        NORMS: {"index": np.array(index), "norms": np.ones((len(index), 1), np.float32)},
    }
    store.add_shards("digits", arrays, (start, start + ROWS), failed, {"batch_size": ROWS})


def shards(path):
    return len(RunStore(path).sets["digits"].passes["base"])


def test_what_was_appended_is_read_and_folded(tmp_path):
    run = killed(tmp_path / "run", 4)
    assert len(json.loads((run / "run.json").read_text())["sets"]["digits"]["passes"]["base"]) == 1
    assert shards(run) == 4
    assert check(run) == []
    with RunStore.open_for_writing(run) as store:
        assert not (run / JOURNAL_FILE).exists()
        for step in (4, 5):
            add(store, step)
        assert shards(run) == 6
    assert not (run / JOURNAL_FILE).exists()
    with RunStore.create(tmp_path / "once", make_info()) as once:
        once.add_pass(PassInfo(NORMS, "norms", "uniform", 1.0, 1.0, "rules", ("fc.weight",)))
        once.add_set(SetInfo("digits", "id", "x", "00", ROWS * 20))
        for step in range(6):
            add(once, step)
            once.save()
    assert (run / "run.json").read_bytes() == (tmp_path / "once" / "run.json").read_bytes()


def test_a_step_writes_the_same_number_of_bytes_however_many_were_before(tmp_path):
    run = killed(tmp_path / "run", 1)
    index, lines = (run / "run.json").read_bytes(), []
    with RunStore.open_for_writing(run) as store:
        store.save()
        for step in range(1, 9):
            add(store, step)
            lines.append((run / JOURNAL_FILE).read_bytes().count(b"\n"))
            assert (run / "run.json").read_bytes() == index
        sizes = np.diff([len(x) for x in (run / JOURNAL_FILE).read_bytes().split(b"\n")[1:-1]])
    assert lines == list(range(2, 10))
    assert np.abs(sizes[2:]).max() <= 8  # digits of the row numbers


def test_rules_that_become_known_are_written(tmp_path):
    run = killed(tmp_path / "run", 2)
    with RunStore.open_for_writing(run) as store:
        store.info.passes[NORMS].rules = {"fc.weight": "linear"}
        add(store, 2)
        assert RunStore(run).info.passes[NORMS].rules == {"fc.weight": "linear"}


def test_a_line_that_was_cut_short_is_written_again(tmp_path):
    run = killed(tmp_path / "run", 4)
    whole = (run / JOURNAL_FILE).read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for size in range(len(whole) + 1):
        (run / JOURNAL_FILE).write_bytes(whole[:size])
        assert shards(run) == 1 + max(0, sum(end <= size for end in ends) - 1)
    (run / JOURNAL_FILE).write_bytes(whole[:-3])
    with RunStore.open_for_writing(run) as store:
        add(store, 3)
    assert (shards(run), check(run)) == (4, [])


def test_a_journal_of_an_older_index_adds_nothing(tmp_path):
    run = killed(tmp_path / "run", 4)
    stale = (run / JOURNAL_FILE).read_bytes()
    with RunStore.open_for_writing(run) as store:
        (run / JOURNAL_FILE).write_bytes(stale)  # killed before it was deleted
        assert shards(run) == 4
        add(store, 4)
        assert shards(run) == 5
    assert (shards(run), check(run)) == (5, [])


def test_every_flip_but_in_the_last_line_is_found(tmp_path):
    run = killed(tmp_path / "run", 4)
    sound = (run / JOURNAL_FILE).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(sound), 120, replace=False).tolist():
        changed = bytearray(sound)
        changed[place] ^= 1 << int(rng.integers(8))
        (run / JOURNAL_FILE).write_bytes(changed)
        if place == len(sound) - 1:
            assert shards(run) == 3
            continue
        with pytest.raises(RunError, match=r"\.journal is damaged: .*line .*; delete it, then"):
            RunStore(run)
        assert [problem.file for problem in check(run)] == [JOURNAL_FILE]


@pytest.mark.parametrize("what", ["left out", "twice", "exchanged"])
def test_lines_are_those_that_were_written_in_their_order(tmp_path, what):
    run = killed(tmp_path / "run", 4)
    head, one, two, three, end = (run / JOURNAL_FILE).read_bytes().split(b"\n")
    lines = {
        "left out": [head, one, three, end],
        "twice": [head, one, one, two, three, end],
        "exchanged": [head, two, one, three, end],
    }
    (run / JOURNAL_FILE).write_bytes(b"\n".join(lines[what]))
    with pytest.raises(RunError, match=r"line \d is not as it was written"):
        RunStore(run)


def test_a_full_disk_leaves_what_was_finished(tmp_path, monkeypatch):
    run = killed(tmp_path / "run", 2)
    with RunStore.open_for_writing(run) as store:
        add(store, 2)
        before = (run / JOURNAL_FILE).read_bytes()

        def full(descriptor):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("gradscore.run.writer.write_new", lambda *how: None)
            patch.setattr("gradscore.run.writer.os.replace", lambda *how, **more: None)
            patch.setattr("gradscore.run.writer.os.fsync", full)
            with pytest.raises(RunError, match="No space left on device"):
                store.writer.append(JOURNAL_FILE, b"half a line")
        assert (run / JOURNAL_FILE).read_bytes() == before


def test_a_link_in_the_place_of_the_journal_is_not_written_through(tmp_path):
    run, outside = killed(tmp_path / "run", 2), tmp_path / "outside"
    outside.write_text("mine")
    (run / JOURNAL_FILE).unlink()
    with RunStore.open_for_writing(run) as store:
        (run / JOURNAL_FILE).hardlink_to(outside)
        store.save()
        (run / JOURNAL_FILE).hardlink_to(outside)
        add(store, 1)
    assert outside.read_text() == "mine"
