"""What any model is: how it is run without a trace, what is known of it, what it must keep to."""

from gradscore.network.checks import (
    check_eval_mode,
    check_images,
    check_model,
    check_unhooked,
    wrap_forward_errors,
)
from gradscore.network.dry_runs import (
    changes_parameters,
    dry_run,
    kept_tensors_of,
    preserve_state,
    without_caches,
)
from gradscore.network.facts import ONE_AT_A_TIME, State, hold_state, remembered, state_of
from gradscore.network.float64 import is_in_place
from gradscore.network.independence import check_independence, note_data_dependence
from gradscore.network.observation import force_eager, observe, unobserved

__all__ = [
    "ONE_AT_A_TIME",
    "State",
    "changes_parameters",
    "check_eval_mode",
    "check_images",
    "check_independence",
    "check_model",
    "check_unhooked",
    "dry_run",
    "force_eager",
    "hold_state",
    "is_in_place",
    "kept_tensors_of",
    "note_data_dependence",
    "observe",
    "preserve_state",
    "remembered",
    "state_of",
    "unobserved",
    "without_caches",
    "wrap_forward_errors",
]
