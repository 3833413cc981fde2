"""Where a model uses its parameters, and how per-sample gradients are had from there."""

from gradscore.uses.bundle import Bundle, bundles_of
from gradscore.uses.collector import Collector
from gradscore.uses.forward import Forward, check_eval_mode, check_images, record_forward

__all__ = [
    "Bundle",
    "Collector",
    "Forward",
    "bundles_of",
    "check_eval_mode",
    "check_images",
    "record_forward",
]
