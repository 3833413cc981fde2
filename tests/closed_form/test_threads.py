"""Work is shared out among torch's own threads, or among new ones where torch has none to lend."""

import threading

import pytest
import torch

from gradscore.closed_form import threads


@pytest.fixture(params=["torch's", "own"])
def _lent(request, monkeypatch):
    if request.param == "own":
        monkeypatch.setattr(threads, "_parallel_region", lambda: None)
    elif threads._parallel_region() is None:
        pytest.skip("torch has no OpenMP threads here")


def taken_by_threads(count, stock):
    """Return what several calls took from a common stock, and the threads that they ran in."""
    left, taken, met = iter(range(stock)), [], set()

    def work():
        met.add(threading.get_native_id())
        taken.extend(left)

    threads.in_threads(work, count)
    return sorted(taken), met


@pytest.mark.usefixtures("_lent")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_all_work_is_done_once(count):
    taken, met = taken_by_threads(count, 1000)
    assert taken == list(range(1000))
    assert threading.get_native_id() in met
    assert len(met) <= count


@pytest.mark.usefixtures("_lent")
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_error_in_any_thread_reaches_the_caller(error):
    def work():
        raise error("none left")

    with pytest.raises(error, match="none left"):
        threads.in_threads(work, 2)
    assert taken_by_threads(2, 10)[0] == list(range(10))


@pytest.mark.usefixtures("_lent")
def test_work_may_share_out_work():
    done = []
    threads.in_threads(lambda: threads.in_threads(lambda: done.append(1), 2), 2)
    assert len(done) >= 2


def test_the_threads_are_those_that_torch_uses_again():
    if threads._parallel_region() is None:
        pytest.skip("torch has no OpenMP threads here")
    _, first = taken_by_threads(2, 10)
    assert taken_by_threads(2, 10)[1] == first


def test_another_kind_of_threads_in_torch_is_none_to_lend(monkeypatch):
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "parallel backend: native")
    assert threads._parallel_region.__wrapped__() is None
    monkeypatch.undo()
    monkeypatch.setattr(threads.ctypes, "CDLL", lambda name: object())
    assert threads._parallel_region.__wrapped__() is None


def test_the_child_of_a_fork_makes_its_own_threads(monkeypatch):
    monkeypatch.setattr(threads, "_parallel_region", threads._parallel_region)
    threads._leave_to_parent()
    assert threads._parallel_region() is None
    assert taken_by_threads(2, 100)[0] == list(range(100))
