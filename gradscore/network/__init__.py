"""What any model is: how it is run without a trace, what is known of it, what it must keep to."""

from gradscore.network.checks import (
    check_eval_mode,
    check_images,
    check_model,
    check_unhooked,
    kept_tensors_of,
    without_caches,
    wrap_forward_errors,
)
from gradscore.network.collector import paused_collector, running_collector
from gradscore.network.facts import (
    ONE_AT_A_TIME,
    hold_state,
    listing_of,
    remembered,
    state_of,
)
from gradscore.network.forwards import (
    changes_parameters,
    dry_run,
    force_eager,
    observe,
    preserve_state,
    unobserved,
)
from gradscore.network.independence import check_independence, note_data_dependence

__all__ = [
    "ONE_AT_A_TIME",
    "changes_parameters",
    "check_eval_mode",
    "check_images",
    "check_independence",
    "check_model",
    "check_unhooked",
    "dry_run",
    "force_eager",
    "hold_state",
    "kept_tensors_of",
    "listing_of",
    "note_data_dependence",
    "observe",
    "paused_collector",
    "preserve_state",
    "remembered",
    "running_collector",
    "state_of",
    "unobserved",
    "without_caches",
    "wrap_forward_errors",
]
