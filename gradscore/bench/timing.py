"""Timings that can be compared: every function in turn, again and again, in one process."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 7,
    seconds: float = 10.0,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time functions in turns, so that what else the machine does meets all of them alike.

    Each runs once beforehand to warm up. Ratios should be taken within a round.

    Args:
        functions: What to run, by name.
        repeats: Most rounds.
        seconds: No round begins after this much time; there is always one.
        device: ``cuda`` waits for the device before and after each run.
        clock: What tells the seconds; on a busy machine, ``time.thread_time`` counts only those
            that the calling thread ran.

    Returns:
        The seconds of each run, by name, in the order of the rounds.
    """
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    for function in functions.values():
        function()
    taken = {name: [] for name in functions}
    began = time.perf_counter()
    while not any(taken.values()) or (
        len(next(iter(taken.values()))) < repeats and time.perf_counter() - began < seconds
    ):
        for name, function in functions.items():
            wait()
            start = clock()
            function()
            wait()
            taken[name].append(clock() - start)
    return taken


def fraction(limit: list[float], taken: list[float]) -> float:
    """Return the median over rounds of limit over taken: 1 is as fast as the limit."""
    return statistics.median(bound / ours for bound, ours in zip(limit, taken, strict=True))
