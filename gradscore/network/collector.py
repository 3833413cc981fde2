"""Python's collector of cycles, kept out while a batch is recorded and answered.

The record of a forward is thousands of small objects that all go with the batch's norms. Python
looks through them several times on the way, and now and then through all that the process holds,
which takes longer than many a rule.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_CHANGING = threading.Lock()
_pauses = 0
_was_enabled = False


@contextmanager
def paused_collector() -> Iterator[None]:
    """Collect no cycles inside, on any thread, for the time of one forward and its backward."""
    global _pauses, _was_enabled
    with _CHANGING:
        if not _pauses:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1
    try:
        yield
    finally:
        with _CHANGING:
            _pauses -= 1
            if not _pauses and _was_enabled:
                gc.enable()


@contextmanager
def running_collector() -> Iterator[None]:
    """Collect cycles inside all the same: what is done there may leave whole models behind."""
    with _CHANGING:
        if _pauses and _was_enabled:
            gc.enable()
    try:
        yield
    finally:
        with _CHANGING:
            if _pauses and _was_enabled:
                gc.disable()
