"""Whether an error says that memory has ended, whichever library said it.

Where a failure is answered by another way, such as one sample after the other, this one is not:
the other way would be slow without a word, or end likewise.
"""

import torch

SIGNS = ("out of memory", "alloc_failed", "can't allocate memory")
"""Of CUDA, also as a ``torch.AcceleratorError``; of cuDNN's and cuBLAS's status; of the CPU."""


def memory_ended(error: BaseException) -> bool:
    """Return whether an error says that memory has ended."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)
