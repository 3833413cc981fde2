"""The most memory that a call holds on a CPU, above what the process held before it."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path


def peak_mib(run: Callable[[], object]) -> float:
    """Return the peak of resident memory in MiB while a function runs, above that before it."""
    gc.collect()
    # What was freed before is given back to the system, so that it counts again.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kib("VmRSS")
    run()
    return (_status_kib("VmHWM") - before) / 2**10


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
