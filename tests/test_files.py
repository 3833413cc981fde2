"""Only regular files are opened; results are whole or absent, and leave nothing beside them."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest

from gradscore.errors import DataError, RunError
from gradscore.files import (
    near_path,
    open_regular,
    read_regular,
    require_replaceable,
    written_aside,
)
from gradscore.tables import check_output


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("images/tset", " Did you mean images/test?"),
        ("imges/test/cat", " Did you mean images?"),
        ("images/test", ""),
        ("images/other", ""),
        ("nul\0", ""),
    ],
)
def test_a_mistyped_path_is_told_its_near_one(tmp_path, monkeypatch, given, meant):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images" / "test").mkdir(parents=True)
    assert near_path(given) == meant


@pytest.fixture(params=["fifo", "socket", "device", "folder", "link to a fifo"])
def irregular(request, tmp_path, monkeypatch):
    """Return the path of what is no file, and what an error calls it."""
    path = tmp_path / "x"
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "socket":
        monkeypatch.chdir(tmp_path)  # its whole path may be too long for a socket
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("x")
    elif request.param == "folder":
        path.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("/dev/zero" if request.param == "device" else tmp_path / "pipe")
    return path, {"link to a fifo": "FIFO", "fifo": "FIFO"}.get(request.param, request.param)


def test_what_is_no_regular_file_is_not_opened(irregular):
    path, name = irregular
    for opening in (open_regular, lambda path: read_regular(path, 10), require_replaceable):
        with pytest.raises(OSError, match=f"expected a regular file, got a {name}"):
            opening(path)


def test_files_of_bounded_size_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_regular(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="at most 4 bytes, got 5"):
        read_regular(tmp_path / "a", 4)
    os.truncate(tmp_path / "a", 1 << 40)  # sparse: it takes no room
    with pytest.raises(OSError, match="at most 5 bytes"):
        read_regular(tmp_path / "a", 5)


def test_a_file_is_replaced_when_it_is_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with contextlib.suppress(ZeroDivisionError), written_aside(tmp_path / "a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"
    with written_aside(tmp_path / "a") as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("kind", [RunError, DataError])
def test_what_cannot_be_written_is_one_line(tmp_path, kind, irregular):
    for path, told in (
        (tmp_path / "absent" / "a", "No such file or directory"),
        (irregular[0], f"expected a regular file, got a {irregular[1]}"),
    ):
        with pytest.raises(kind, match=f"Cannot write .*: {told}"), written_aside(path, kind):
            pass


def test_long_names_have_room_for_the_name_beside_them(tmp_path):
    with written_aside(tmp_path / f"{'é' * 120}.csv") as file:
        file.write(b"x")
    assert len(os.listdir(tmp_path)) == 1


def test_the_next_command_removes_what_a_killed_one_left(tmp_path):
    (tmp_path / ".a.csv.123.part").write_bytes(b"of an earlier version")
    code = (
        "import os, sys\nfrom gradscore.files import written_aside\n"
        "with written_aside(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.csv")])
    assert len(list(tmp_path.glob(".a.csv.*.part"))) == 1  # of the killed one alone
    with written_aside(tmp_path / "a.csv") as first:
        with written_aside(tmp_path / "a.csv") as second:  # takes nothing from one that lives
            second.write(b"second")
        first.write(b"first")
    assert os.listdir(tmp_path) == ["a.csv"]
    assert (tmp_path / "a.csv").read_bytes() == b"first"


def test_a_worker_that_outlives_a_killed_command_keeps_nothing_beside_it(tmp_path):
    code = (
        "import os, sys, time\nfrom gradscore.files import written_aside\n"
        "with written_aside(sys.argv[1]) as file:\n"
        "    ends = os.pipe()\n"
        "    worker = os.fork()\n"
        "    if not worker: os.write(ends[1], b'.'); time.sleep(60)\n"
        "    open(sys.argv[2], 'w').write(str(worker)); os.read(ends[0], 1)\n"
        "    os.kill(os.getpid(), 9)"
    )
    out, pid = tmp_path / "out", tmp_path / "pid"
    out.mkdir()
    subprocess.run([sys.executable, "-c", code, str(out / "a.csv"), str(pid)])
    try:
        with written_aside(out / "a.csv") as file:
            file.write(b"whole")
        assert os.listdir(out) == ["a.csv"]
    finally:
        os.kill(int(pid.read_text()), 9)


@pytest.mark.parametrize("name", ["a\0.csv", "a\0/b.csv"])
def test_a_path_with_a_nul_is_one_line(tmp_path, name):
    with pytest.raises(RunError, match="Cannot write"):
        check_output(f"{tmp_path}/{name}", (".csv",))
