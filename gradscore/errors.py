"""What can go wrong, by kind. The command line prints each as one line and exits with 1."""

import os
from collections.abc import Iterable
from pathlib import Path

SIGNS_OF_MEMORY = ("out of memory", "alloc_failed", "can't allocate memory")
"""Of CUDA, also as a ``torch.AcceleratorError``; of cuDNN's and cuBLAS's status; of the CPU."""


class GradScoreError(Exception):
    """Base of every error that gradscore raises on purpose."""


class InvalidArgument(GradScoreError, ValueError):
    """An argument is outside of what the function accepts; the message names what it accepts."""


class ModelError(GradScoreError):
    """The model cannot be built, or cannot be scored as asked."""


class WeightsError(GradScoreError):
    """A weight file is missing, unreadable or does not fit the model."""


class DataError(GradScoreError):
    """A set, a manifest or an image is missing, unreadable or not what it claims to be."""


class RunError(GradScoreError):
    """A run is missing, damaged, in use, or disagrees with what is asked to be added."""


class DetectorError(GradScoreError):
    """A detector's file is missing, damaged or of another kind, or belongs to another model."""


class NotRecorded(RunError):
    """The run does not hold what the score needs; the message names the option that would."""


class GradScoreWarning(UserWarning):
    """A result stands, but is hardly what was meant, or less sure; the message says why."""


def near_name(name: str, known: Iterable[str], folder: str | os.PathLike = "") -> str:
    """Return a sentence with the known name that a mistyped one is near, or an empty text.

    Args:
        name: What was given.
        known: What could be.
        folder: Where these are, if they are files.

    >>> near_name("enrgy", ["energy", "msp"]), near_name("own", ["energy"])
    (' Did you mean energy?', '')
    """
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {Path(folder, close[0])}?" if close else ""


def memory_ended(error: BaseException) -> bool:
    """Return whether an error says that memory has ended, whichever library said it.

    Where a failure is answered by another way, such as one sample after the other, this one is
    not: the other way would be slow without a word, or end likewise.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in SIGNS_OF_MEMORY)


def reason_of(error: BaseException) -> str:
    r"""Return the first line of an error, or the name of its type where it says nothing.

    >>> reason_of(ValueError("too deep\nat line 3")), reason_of(KeyError())
    ('too deep', 'KeyError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
