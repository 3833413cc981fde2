"""A file that was read and hashed beforehand must be the one that is opened, and as sound."""

import hashlib
import os

import pytest

from gradscore.errors import RunError
from gradscore.run.hashed import AHEAD, HashedFiles

CONTENTS = {"a": b"first" * 900, "b": b"second" * 700, "c": b"third"}


@pytest.fixture
def files(tmp_path):
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    return HashedFiles(tmp_path)


def content(files, name, following=()):
    with files.open(name, sha256(name), following) as opened:
        return bytes(opened.read())


def sha256(name):
    return hashlib.sha256(CONTENTS[name]).hexdigest()


def test_files_that_were_hashed_ahead_are_those_that_are_opened(files):
    for name, following in (("a", "bca"), ("b", "ca"), ("c", "ab"), ("a", "")):
        assert content(files, name, list(following)) == CONTENTS[name]


def test_the_open_file_keeps_its_bytes_while_the_next_are_hashed(files):
    with files.open("a", sha256("a"), ["b", "c"]) as opened:
        assert [coming.result().sha256 for coming in files._coming.values()] == [
            sha256("b"),
            sha256("c"),
        ]
        assert bytes(opened.read()) == CONTENTS["a"]
    assert content(files, "b") == CONTENTS["b"]


def test_memory_of_closed_files_is_used_again(files):
    for _ in range(5):
        for name, following in (("a", "bc"), ("b", "ca"), ("c", "ab")):
            content(files, name, list(following))
    rooms = [coming.result().room for coming in files._coming.values()] + files._rooms
    assert len({id(room) for room in rooms}) == len(rooms) <= 2 + AHEAD


def test_at_most_so_many_files_are_hashed_ahead(files):
    with files.open("a", sha256("a"), ["b", "c", "a"]):
        assert list(files._coming) == ["b", "c"]


def test_another_file_than_the_next_may_be_opened(files):
    with files.open("a", sha256("a"), ["b"]):
        pass
    assert content(files, "c") == CONTENTS["c"]
    assert content(files, "b") == CONTENTS["b"]


@pytest.mark.parametrize("content", [None, b"else"], ids=["missing", "damaged"])
def test_a_file_that_is_made_anew_after_it_was_hashed_ahead_is_read_again(files, content):
    path = files.root / "b"
    path.unlink() if content is None else path.write_bytes(content)
    with files.open("a", sha256("a"), ["b"]):
        files._coming["b"].exception()  # waits
    path.write_bytes(CONTENTS["b"])
    with files.open("b", sha256("b")) as opened:
        assert bytes(opened.read()) == CONTENTS["b"]


def test_where_no_thread_can_be_started_files_are_hashed_when_they_are_opened(files, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(files._threads, "submit", refuse)
    assert content(files, "a", ["b"]) == CONTENTS["a"]
    assert content(files, "b") == CONTENTS["b"]


def test_a_large_file_that_is_written_to_while_it_is_open_is_known(files, monkeypatch):
    monkeypatch.setattr("gradscore.run.hashed.IN_MEMORY", 0)
    with files.open("a", sha256("a"), ["b"]) as opened:
        assert opened.unchanged()
        with (files.root / "a").open("ab") as file:
            file.write(b"more")
        assert not opened.unchanged()
    with files.open("b", sha256("b")) as opened:
        assert bytes(opened.read()) == CONTENTS["b"]


@pytest.mark.parametrize("most", [0, 1 << 20], ids=["through a descriptor", "in memory"])
def test_no_descriptor_is_left_open(files, monkeypatch, most):
    monkeypatch.setattr("gradscore.run.hashed.IN_MEMORY", most)
    before = set(os.listdir("/proc/self/fd"))
    for name, following in (("a", "bc"), ("b", "c"), ("c", "ab")):
        content(files, name, list(following))
    with pytest.raises(RunError, match="SHA-256"), files.open("a", sha256("b"), ["b"]):
        pass
    files.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_damaged_file_is_refused_when_it_is_opened(files):
    (files.root / "b").write_bytes(b"else")
    content(files, "a", ["b"])
    with pytest.raises(RunError, match="its SHA-256 is not the recorded one"):
        content(files, "b")
    (files.root / "b").unlink()
    content(files, "a", ["b"])
    with pytest.raises(RunError, match="missing"):
        content(files, "b")


@pytest.mark.parametrize("bad", [False, True], ids=["sound", "missing"])
def test_files_that_were_hashed_for_nothing_leave_no_thread(files, bad):
    content(files, "a", ["b", "c"])
    if bad:
        (files.root / "b").unlink()
    content(files, "c", ["b", "a"])
    files.close()
    assert files._threads._threads
    assert not any(thread.is_alive() for thread in files._threads._threads)
