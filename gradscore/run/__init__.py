"""Runs on disk: what a model answered for each image of each set, recorded once.

The only package that imports h5py.
"""

from gradscore.run.checking import Problem, check
from gradscore.run.layout import (
    BASE,
    FailedRow,
    HeadInfo,
    PassInfo,
    RunInfo,
    SetInfo,
    Shard,
    norms_name,
)
from gradscore.run.store import RunStore

__all__ = [
    "BASE",
    "FailedRow",
    "HeadInfo",
    "PassInfo",
    "Problem",
    "RunInfo",
    "RunStore",
    "SetInfo",
    "Shard",
    "check",
    "norms_name",
]
