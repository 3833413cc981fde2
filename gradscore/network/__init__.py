"""What any model is: how it is run without a trace, what is known of it, what it must keep to."""

from gradscore.network.as_written import as_written
from gradscore.network.checks import check_eval_mode, check_images, check_model, taking
from gradscore.network.elsewhere import tensors_from_elsewhere
from gradscore.network.independence import check_independence, sends_by_value
from gradscore.network.state import State, one_state, state_of
from gradscore.network.trial import structure_of, trial_images
from gradscore.network.undisturbed import undisturbed, without_tables, writes_parameters

__all__ = [
    "State",
    "as_written",
    "check_eval_mode",
    "check_images",
    "check_independence",
    "check_model",
    "one_state",
    "sends_by_value",
    "state_of",
    "structure_of",
    "taking",
    "tensors_from_elsewhere",
    "trial_images",
    "undisturbed",
    "without_tables",
    "writes_parameters",
]
