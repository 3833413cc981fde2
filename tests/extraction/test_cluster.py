"""A Ray cluster records what one process records, byte for byte, whatever dies meanwhile."""

import builtins
import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch
from test_parts import LIMITS, rows

from gradscore.errors import DataError, InvalidArgument
from gradscore.extraction import task as tasks
from gradscore.extraction.cluster import _Actor, _Rates
from gradscore.extraction.plan import Stretch
from gradscore.extraction.task import Task, Worker, clear, cut
from gradscore.recorded import extract
from gradscore.run import FailedRow, RunStore, check

SETS = {"digits": ("id", "digits:test"), "noise": ("ood", "digits:noise")}
SMALL = {
    "limit": {name: LIMITS[name] for name in SETS},
    "batch_size": 4,
    "shard_rows": 4,
    "layers": "block4",
}
"""Small tasks: seven of the first set, four of the second."""


def record(run, **how):
    return extract("digits", SETS, run, **{**SMALL, **how})


@pytest.fixture(scope="module")
def cluster():
    """Run a cluster of two CPUs on this machine."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    before = dict(os.environ)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole")
    record(run)
    return run


class Told:
    """Notes what it is told; kills an actor, or interrupts, once some images are done."""

    def __init__(self, act=None, after=0):
        self.act, self.left, self.sentences, self.done = act, after, [], 0

    def start(self, total, description):
        pass

    def finish(self):
        pass

    def tell(self, sentence):
        self.sentences.append(sentence)

    def advance(self, n):
        self.done += n
        self.left -= n
        if self.act is not None and self.left < 0:
            act, self.act = self.act, None
            act()


def kill_one():
    """Kill one of this cluster's workers that hold a model: a child of a child of this process."""

    def parent(pid):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_actor = (place / "cmdline").read_bytes().startswith(b"ray::_Actor")
            if is_actor and parent(parent(int(place.name))) == os.getpid():
                os.kill(int(place.name), signal.SIGKILL)
                return
    raise AssertionError("no actor is there")


def test_the_rates_of_a_set_count_neither_sets_before_it_nor_the_time_before_its_first_task(
    monkeypatch,
):
    clock = iter([100.0, 110.0, 500.0, 502.0])
    monkeypatch.setattr("gradscore.extraction.cluster.time.monotonic", lambda: next(clock))
    rates = _Rates()
    assert rates.take() == "nothing was computed"
    rates.begin()
    rates.begin()
    rates.add("a", 3000)
    rates.add("b", 40)
    assert rates.take() == "300 images/s on a, 4 images/s on b"
    rates.begin()
    rates.add("a", 10)
    assert rates.take() == "5 images/s on a"


@pytest.mark.slow
def test_a_cluster_records_what_one_process_does(cluster, whole, tmp_path):
    told = Told(kill_one, 8)
    record(tmp_path, executor="ray", actors=2, progress=told)
    assert rows(tmp_path) == rows(whole)
    assert check(tmp_path) == []
    assert told.done == sum(SMALL["limit"].values())
    assert any("images/s on" in sentence for sentence in told.sentences)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}
    one, other = RunStore(whole).info, RunStore(tmp_path).info
    assert one.passes == other.passes

    # Interrupted, either executor goes on; a pass is added to what is there.
    run = tmp_path / "stopped"

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(run, executor="ray", actors=1, progress=Told(stop, 8))
    assert RunStore(run).sets["digits"].done("base") < LIMITS["digits"]
    record(run)
    assert rows(run) == rows(whole)
    record(run, executor="ray", actors=1, keep=("block4",))
    record(whole, keep=("block4",))
    assert rows(run) == rows(whole)

    with pytest.raises(InvalidArgument, match="Expected 1 to 2 actors, as the cluster has 2 CPUs"):
        record(tmp_path / "many", executor="ray", actors=3)


def test_without_ray_one_line_names_the_extra(tmp_path, monkeypatch):
    imported = builtins.__import__

    def absent(name, *how):
        if name == "ray":
            raise ImportError(name)
        return imported(name, *how)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InvalidArgument, match=r"not installed: pip install 'gradscore\[ray\]'"):
        record(tmp_path, executor="ray")


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ({"executor": "dask"}, "Expected executor local or ray, got 'dask'"),
        ({"actors": 2}, "Expected actors with executor ray only; add `executor='ray'`"),
        ({"executor": "ray", "actors": 0}, "Expected 1 or more actors, got 0"),
        ({"executor": "ray", "part": (1, 2)}, "Expected a part or executor ray, got both"),
    ],
)
def test_how_it_is_executed_is_checked_first(tmp_path, how, error):
    with pytest.raises(InvalidArgument, match=error):
        record(tmp_path, **how)


def test_tasks_are_cut_at_multiples_of_their_rows():
    failed = [FailedRow(place, "x", "y") for place in (3, 9, 10)]
    stretch = Stretch(3, 14, False, [])
    found = list(cut(Task("a", stretch, failed), 4))
    assert [(one.stretch.start, one.stretch.stop) for one in found] == [
        (3, 4),
        (4, 8),
        (8, 12),
        (12, 14),
    ]
    assert [[row.index for row in one.failed] for one in found] == [[3], [], [9, 10], []]
    assert all(one.failed == [] for one in cut(Task("a", stretch._replace(base=True), failed), 4))


def test_a_worker_has_the_sets_of_the_driver(tmp_path):
    settings = []
    original = tasks.resolve

    def kept(given):
        settings.append(given)
        return original(given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradscore.extraction.resolve", kept)
        record(tmp_path)
    with torch.random.fork_rng(), pytest.raises(DataError, match=r"got others on .*; put them on"):
        Worker(settings[0], {}, {"digits": "another"})
    done, error = _Actor((settings[0], {}, {"digits": "another"})).compute(None)
    assert done is None
    assert type(error) is DataError
    assert "put them on a disk that all of them share" in str(error)


def test_a_link_in_the_place_of_tasks_is_refused(tmp_path):
    (tmp_path / ".tasks").symlink_to(tmp_path)
    with pytest.raises(Exception, match="the folder of a run's tasks, got the link"):
        clear(tmp_path)
