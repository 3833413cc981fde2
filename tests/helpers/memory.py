"""What a call holds at once of NumPy's arrays and Python's objects."""

import tracemalloc


def peak_bytes(work):
    """Return the most bytes that ``work()`` holds beside what is there before it."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
