"""What all tests share: each of several test processes keeps to one thread."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported; commands that a test starts inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
