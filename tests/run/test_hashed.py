"""A file that was read and hashed beforehand must be the one that is opened, and as sound."""

import hashlib

import pytest

from gradscore.errors import RunError
from gradscore.run.hashed import HashedFiles

CONTENTS = {"a": b"first" * 900, "b": b"second" * 700, "c": b"third"}


@pytest.fixture
def files(tmp_path):
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    return HashedFiles(tmp_path)


def content(files, name):
    with files.open(name, hashlib.sha256(CONTENTS[name]).hexdigest()) as opened:
        return bytes(opened.read())


def test_what_was_prepared_is_what_is_opened(files):
    assert content(files, "a") == CONTENTS["a"]
    for name in ("b", "c", "a"):
        files.prepare(name)
        assert content(files, name) == CONTENTS[name]


def test_the_open_file_keeps_its_bytes_while_the_next_is_prepared(files):
    with files.open("a", hashlib.sha256(CONTENTS["a"]).hexdigest()) as opened:
        files.prepare("b")
        files._ahead[1].join()
        assert bytes(opened.read()) == CONTENTS["a"]
    assert content(files, "b") == CONTENTS["b"]


def test_another_file_than_the_prepared_one_may_be_opened(files):
    files.prepare("b")
    assert content(files, "c") == CONTENTS["c"]
    assert content(files, "b") == CONTENTS["b"]


def test_a_large_file_that_is_written_to_while_it_is_open_is_known(files, monkeypatch):
    monkeypatch.setattr("gradscore.run.hashed.IN_MEMORY", 0)
    with files.open("a", hashlib.sha256(CONTENTS["a"]).hexdigest()) as opened:
        assert opened.unchanged()
        with (files.root / "a").open("ab") as file:
            file.write(b"more")
        assert not opened.unchanged()


def test_a_damaged_file_is_refused_when_it_is_opened(files):
    (files.root / "b").write_bytes(b"else")
    files.prepare("b")
    with pytest.raises(RunError, match="its SHA-256 is not the recorded one"):
        content(files, "b")
    (files.root / "b").unlink()
    files.prepare("b")
    with pytest.raises(RunError, match="missing"):
        content(files, "b")
