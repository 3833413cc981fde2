"""Work shared out among torch's own threads.

After each call torch's threads look out for the next one for some milliseconds, on the cores that
they need. Threads of our own would meet them there, and run at half speed right after a forward.
So the work is handed to the same threads: by the function that torch's own loops call, the
parallel region of the OpenMP library that torch was loaded with. Where torch has other threads,
and in a forked process, which has none of its parent's, threads are made for the one call.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def in_threads(work: Callable[[], None], threads: int) -> None:
    """Call ``work`` in several threads at once, this one among them.

    Fewer calls may be made than asked for, as inside a parallel region: what is to be done has to
    be taken from a common stock.

    Args:
        work: What each thread calls. It must not call torch, whose threads are busy.
        threads: Most calls.

    Raises:
        BaseException: Whatever ``work`` raised first.
    """
    if threads < 2:
        work()
    elif (parallel := _parallel_region()) is None:
        with ThreadPoolExecutor(threads - 1) as pool:
            others = [pool.submit(work) for _ in range(threads - 1)]
            work()
        for other in others:
            other.result()
    else:
        errors: list[BaseException] = []

        def guarded(_: int | None) -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        parallel(Region(guarded), None, threads, 0)
        if errors:
            raise errors[0]


@cache
def _parallel_region() -> Callable[..., None] | None:
    """Return ``GOMP_parallel`` of the OpenMP library that torch uses, or None.

    GNU's library and LLVM's both have it: ``(function, its argument, threads, flags)``.
    """
    if "parallel backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        region = ctypes.CDLL(None).GOMP_parallel  # torch's libraries are open to all
    except (AttributeError, OSError, TypeError):  # another library, or another system
        return None
    region.argtypes = [Region, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    region.restype = None
    return region


def _leave_to_parent() -> None:
    """Let the child of a fork make its own threads: none of the parent's are in it."""
    global _parallel_region

    def _parallel_region() -> None:
        return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
