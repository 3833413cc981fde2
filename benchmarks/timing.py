"""Timings that can be compared: every function in turn, again and again, in one process."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch

PAUSE = 0.05
"""Seconds before each run."""


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 7,
    seconds: float = 10.0,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
    pause: float = PAUSE,
) -> dict[str, list[float]]:
    """Time functions in turns, so that what else the machine does meets all of them alike.

    Each runs once beforehand to warm up, and after a pause: threads of the one before it spin for
    some milliseconds, on the cores that it needs. Ratios should be taken within a round.

    Args:
        functions: What to run, by name.
        repeats: Most rounds.
        seconds: No round begins after this much time; there is always one.
        device: ``cuda`` waits for the device before and after each run.
        clock: What tells the seconds; on a busy machine, ``time.thread_time`` counts only those
            that the calling thread ran.
        pause: Seconds before each run; none is needed where all run in the same threads.

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
            time.sleep(pause)
            start = clock()
            function()
            wait()
            taken[name].append(clock() - start)
    return taken


def fraction(limit: list[float], taken: list[float]) -> float:
    """Return the median over rounds of limit over taken: 1 is as fast as the limit."""
    return statistics.median(bound / ours for bound, ours in zip(limit, taken, strict=True))


def device_name(device: str) -> str:
    """Return the name of a CUDA device, or the kind of processor and the threads it lends."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def device_option(text: str) -> str:
    """Return ``cpu`` or ``cuda`` of a command line, the latter only where there is a device."""
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"Expected cpu or cuda, got {text!r}.")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("Expected a CUDA device, found none; use --device cpu.")
    return text
