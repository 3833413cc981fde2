"""Where a model uses its parameters, and how per-sample gradients are had from there."""

from gradscore.uses.as_written import as_written
from gradscore.uses.backward import run_backward
from gradscore.uses.bundle import Bundle, bundles_of
from gradscore.uses.checks import check_eval_mode, check_images, check_model, taking
from gradscore.uses.collector import Collector
from gradscore.uses.elsewhere import tensors_from_elsewhere
from gradscore.uses.forward import (
    Forward,
    own_images,
    record_forward,
    unrecorded_forward,
)
from gradscore.uses.independence import check_independence, sends_by_value
from gradscore.uses.state import State, one_state, state_of
from gradscore.uses.trial import structure_of, trial_images
from gradscore.uses.undisturbed import undisturbed, without_tables, writes_parameters

__all__ = [
    "Bundle",
    "Collector",
    "Forward",
    "State",
    "as_written",
    "bundles_of",
    "check_eval_mode",
    "check_images",
    "check_independence",
    "check_model",
    "one_state",
    "own_images",
    "record_forward",
    "run_backward",
    "sends_by_value",
    "state_of",
    "structure_of",
    "taking",
    "tensors_from_elsewhere",
    "trial_images",
    "undisturbed",
    "unrecorded_forward",
    "without_tables",
    "writes_parameters",
]
