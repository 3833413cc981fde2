"""Runs on disk: what a model answered for each image of each set, recorded once.

The only package that imports h5py.
"""

from gradscore.run.advice import (
    ROLE_OPTIONS,
    extract_command,
    keep_options,
    mahalanobis_options,
    odin_options,
    remove_command,
)
from gradscore.run.checking import Problem, check
from gradscore.run.damage import remedy
from gradscore.run.fits import describe_fit, read_fit, write_fit
from gradscore.run.layout import FailedRow, FitInfo, HeadInfo, PassInfo, RunInfo, SetInfo, Shard
from gradscore.run.named import model_of, require_openable
from gradscore.run.names import (
    BASE,
    ROLES,
    mahalanobis_name,
    norms_name,
    odin_name,
    pass_field,
)
from gradscore.run.store import RunStore, require_newest

__all__ = [
    "BASE",
    "ROLES",
    "ROLE_OPTIONS",
    "FailedRow",
    "FitInfo",
    "HeadInfo",
    "PassInfo",
    "Problem",
    "RunInfo",
    "RunStore",
    "SetInfo",
    "Shard",
    "check",
    "describe_fit",
    "extract_command",
    "keep_options",
    "mahalanobis_name",
    "mahalanobis_options",
    "model_of",
    "norms_name",
    "odin_name",
    "odin_options",
    "pass_field",
    "read_fit",
    "remedy",
    "remove_command",
    "require_newest",
    "require_openable",
    "write_fit",
]
