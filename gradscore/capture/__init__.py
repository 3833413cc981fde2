"""Where a model uses its parameters, and how per-sample gradients are had from there."""

from gradscore.capture.backward import run_backward
from gradscore.capture.bundle import Bundle, bundles_of
from gradscore.capture.collector import Collector
from gradscore.capture.forward import (
    Forward,
    own_images,
    record_forward,
    unrecorded_forward,
)

__all__ = [
    "Bundle",
    "Collector",
    "Forward",
    "bundles_of",
    "own_images",
    "record_forward",
    "run_backward",
    "unrecorded_forward",
]
