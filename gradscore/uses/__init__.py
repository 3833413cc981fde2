"""Where a model uses its parameters, and how per-sample gradients are had from there."""

from gradscore.uses.bundle import Bundle, bundles_of
from gradscore.uses.collector import Collector
from gradscore.uses.forward import Forward, check_eval_mode, check_images, record_forward
from gradscore.uses.trial import structure_of, trial_images

__all__ = [
    "Bundle",
    "Collector",
    "Forward",
    "bundles_of",
    "check_eval_mode",
    "check_images",
    "record_forward",
    "structure_of",
    "trial_images",
]
