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
_pauses: set[object] = set()
_was_enabled = False


@contextmanager
def paused_collector() -> Iterator[None]:
    """Collect no cycles inside, on any thread, for the time of one forward and its backward."""
    global _was_enabled
    pause = object()
    # An interrupt may come at any step, so that each can be undone, and undone twice.
    try:
        with _CHANGING:
            if not _pauses:
                _was_enabled = gc.isenabled()
            _pauses.add(pause)
            gc.disable()
        yield
    finally:
        try:
            _end(pause)
        except KeyboardInterrupt:
            _end(pause)
            raise


def _end(pause: object) -> None:
    with _CHANGING:
        if _pauses == {pause} and _was_enabled:
            gc.enable()
        _pauses.discard(pause)


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
