"""Runs on disk: what a model answered for each image of each set, recorded once.

The only package that imports h5py.
"""

from gradscore.run.changes import remove_set
from gradscore.run.checking import Problem, check
from gradscore.run.choice_file import ChoiceRecord, ScoreRecord
from gradscore.run.contents import describe_fit, pass_field
from gradscore.run.hints import (
    ROLE_OPTIONS,
    extract_command,
    keep_options,
    mahalanobis_options,
    model_of,
    odin_options,
    remove_command,
    require_newest,
    require_openable,
)
from gradscore.run.imported import Imported, import_set
from gradscore.run.layout import (
    BASE,
    ROLES,
    FailedRow,
    FitInfo,
    HeadInfo,
    PassInfo,
    RunInfo,
    SetInfo,
    Shard,
)
from gradscore.run.merging import Merged, merge
from gradscore.run.names import mahalanobis_name, norms_name, odin_name
from gradscore.run.store import RunStore

__all__ = [
    "BASE",
    "ROLES",
    "ROLE_OPTIONS",
    "ChoiceRecord",
    "FailedRow",
    "FitInfo",
    "HeadInfo",
    "Imported",
    "Merged",
    "PassInfo",
    "Problem",
    "RunInfo",
    "RunStore",
    "ScoreRecord",
    "SetInfo",
    "Shard",
    "check",
    "describe_fit",
    "extract_command",
    "import_set",
    "keep_options",
    "mahalanobis_name",
    "mahalanobis_options",
    "merge",
    "model_of",
    "norms_name",
    "odin_name",
    "odin_options",
    "pass_field",
    "remove_command",
    "remove_set",
    "require_newest",
    "require_openable",
]
