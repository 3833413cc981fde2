"""Where a model uses its parameters, and how per-sample gradients are had from there."""

from gradscore.uses.bundle import Bundle, bundles_of
from gradscore.uses.collector import Collector
from gradscore.uses.forward import Forward, check_eval_mode, check_images, record_forward
from gradscore.uses.straightening import straighten_batch_norms
from gradscore.uses.trial import structure_of, trial_images

__all__ = [
    "Bundle",
    "Collector",
    "Forward",
    "bundles_of",
    "check_eval_mode",
    "check_images",
    "record_forward",
    "straighten_batch_norms",
    "structure_of",
    "trial_images",
]
