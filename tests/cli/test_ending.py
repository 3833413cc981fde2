"""However a command ends, it says so in one line, and keeps what it has finished."""

import errno
import os
import signal
import time

import pytest
from helpers.commands import call, fails, forked
from helpers.recorded_run import make_run

from gradscore.data import loading, open_set
from gradscore.errors import DataError
from gradscore.run import check


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("ending") / "run")


@pytest.fixture
def breaks(monkeypatch):
    """Return what makes every command about a run end by doing something else."""

    def breaking(action):
        monkeypatch.setattr("gradscore.run.RunStore", lambda path: action())

    return breaking


@pytest.fixture
def heeded():
    """Let a signal have its default effect, also where whoever started the tests ignores it."""
    kept = {}

    def heed(number):
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        kept[number] = signal.signal(number, default)
        return default

    yield heed
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_command_alike(breaks, capsys, number, heeded):
    before = heeded(number)
    # The signal may reach another thread first; it ends the sleep.
    breaks(lambda: (os.kill(os.getpid(), number), time.sleep(20)))
    assert call("run", "info", "x") == 128 + number
    assert capsys.readouterr().err.strip() == (
        "Interrupted. What was finished is kept; the same command resumes."
    )
    assert signal.getsignal(number) is before


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "Expected more memory than this process may use: MemoryError; choose"),
        (RuntimeError("x: can't allocate memory: you tried"), "Expected more memory than"),
        (ImportError("libx.so: failed to map segment from shared object"), "more memory than"),
        (OSError(errno.EMFILE, "Too many open files", "f"), "Expected more open files than"),
        (OSError("Caught OSError in worker\nTraceback\n[Errno 24] Too many open files"), "than"),
        (RuntimeError("can't start new thread"), "Expected more processes and threads than"),
        (PermissionError(errno.EACCES, "Permission denied", "a\nb\x1b"), r"a b\x1b: Permission"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_the_machine_lacks_is_one_line(breaks, capsys, error, told):
    breaks(raising(error))
    assert told in fails(capsys, "run", "info", "x")


def test_what_nobody_foresaw_keeps_its_traceback(breaks):
    breaks(raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        call("run", "info", "x")


def test_a_reader_that_leaves_takes_no_file_along(run, tmp_path, monkeypatch):
    class Gone:
        encoding = "utf-8"

        def write(self, text):
            """Refuse it, as a pipe without a reader does."""
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        flush = isatty = lambda self: False

    output = ("-o", tmp_path / "t.csv", "--plot", tmp_path / "t.png")
    for command in (("evaluate", *output[:2]), ("ablate", "p", *output)):
        monkeypatch.setattr("sys.stdout", Gone())
        assert call(*command, "--run", run, "-q") == 1
        assert (tmp_path / "t.csv").stat().st_size
        (tmp_path / "t.csv").unlink()
    assert (tmp_path / "t.png").stat().st_size


def test_without_stderr_everything_is_recorded(tmp_path):
    words = ("extract", "--run", tmp_path / "r", "--layers", "last", "--limit", 9, "--workers", 0)
    code, shown, _ = forked(*words, closed=(0, 2))
    assert (code, shown) == (0, "")
    assert check(tmp_path / "r") == []


@pytest.mark.parametrize("kind", ["a folder", "a FIFO", "a link to a device"])
@pytest.mark.parametrize("words", [("evaluate",), ("score",), ("ablate", "p")])
def test_a_place_that_takes_no_result_is_one_line(run, tmp_path, capsys, words, kind):
    path = tmp_path / "t.csv"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/full")
    told = fails(capsys, *words, "--run", run, "-o", path)
    assert "t.csv: expected a regular file, got a " in told
    if words[0] == "ablate":
        path.rename(tmp_path / "t.png")
        told = fails(capsys, *words, "--run", run, "--plot", tmp_path / "t.png")
        assert "t.png: expected a regular file, got a " in told


def test_workers_that_could_not_open_their_batches_are_not_waited_for(monkeypatch):
    monkeypatch.setattr(loading.resource, "getrlimit", lambda which: (50, 50))
    images = open_set("digits:test", limit=2)
    with pytest.raises(DataError, match="Expected to be allowed 64 open files for 1 decoding"):
        loading.load_batches(images, None, [(0, 2)], workers=1)
    loading.load_batches(images, None, [(0, 2)], workers=0)
