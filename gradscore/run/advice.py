"""What messages tell the user to paste: commands that add to the run at hand, and to no other.

A run knows its model, weights, preprocessing, sets and how many images of each it took, so that a
command has to say only where the run is and what to record.
"""

import os
import shlex
from typing import Any

from gradscore.norms import number_name
from gradscore.run.layout import FORMAT, PassInfo, RunInfo
from gradscore.run.named import naming_options
from gradscore.run.names import SELECTION, SURROGATE, norms_name

Options = tuple[str, ...]
ROLE_OPTIONS = {"id": "--id", "ood": "--ood", "fit": "--fit-set", None: "--data"}


def command(name: str, run: str | os.PathLike, *options: str) -> str:
    """Return a command about a run, between backticks.

    >>> command("score", "my run", "-p", "2")
    "`gradscore score --run 'my run' -p 2`"
    """
    return f"`{shlex.join(('gradscore', name, '--run', os.fspath(run), *options))}`"


def extract_command(run: Any, *options: str) -> str:
    """Return the command that records something in a run, between backticks.

    Args:
        run: The run's directory, or its reader: then the model is named where it has to be.
        *options: What to record.
    """
    if isinstance(run, str | os.PathLike):
        return command("extract", run, *options)
    return command("extract", run.path, *naming_options(run.info), *options)


def remove_command(run: str | os.PathLike, set_name: str) -> str:
    """Return the command that forgets a set of a run, between backticks."""
    return f"`{shlex.join(('gradscore', 'run', 'remove', set_name, '--run', os.fspath(run)))}`"


def new_run_command(run: str | os.PathLike) -> str:
    """Return the command that makes a run, but for what only the user knows."""
    sets = ("--id", "NAME=PATH", "--ood", "NAME=PATH")
    return extract_command(run, "--model", "SPEC", *sets)


def again_command(run: str | os.PathLike, info: RunInfo) -> str:
    """Return the command that records the model and sets of a run in a new one beside it."""
    model = ("--model", info.model, *(("--weights", info.weights) if info.weights else ()))
    sets = [
        option
        for entry in info.sets.values()
        if entry.role != SURROGATE
        for option in (ROLE_OPTIONS[entry.role], f"{entry.name}={entry.source}")
    ]
    return extract_command(f"{os.fspath(run).rstrip('/')}-{FORMAT}", *model, *sets)


def norms_options(layers: str, target: str, temperature: float, p: float) -> Options:
    """Return what records the gradient norms of ``layers``."""
    how = ("-p", number_name(p), "-T", number_name(temperature), "--target", target)
    return ("--layers", layers, *how)


def odin_options(temperature: float, epsilon: float) -> Options:
    """Return what records the logits of perturbed inputs."""
    how = ("-T", number_name(temperature), "--epsilon", number_name(epsilon))
    return ("--layers", "last", "--record", "odin", *how)


def mahalanobis_options(info: RunInfo, fit: str) -> Options:
    """Return what records every stage's confidence, fitted to a set of the run."""
    return ("--layers", "last", "--record", "mahalanobis", "--fit", fit, *skipping(info, fit))


def skipping(info: RunInfo, name: str) -> Options:
    """Return what reads a set as it was read before: without images that cannot be."""
    return ("--on-error", "skip") if info.sets[name].failed else ()


def keep_options(module: str, dtype: str = "float32") -> Options:
    """Return what stores the input of a module."""
    return ("--layers", "last", "--keep", module, "--keep-dtype", dtype)


def pass_options(info: RunInfo, name: str) -> Options:
    """Return what records a pass of the run, its base pass too, as it was recorded."""
    entry = info.passes.get(name)
    if entry is None:
        return ("--layers", "last")
    if entry.kind == "odin":
        return odin_options(entry.temperature, entry.details["epsilon"])
    if entry.kind == "mahalanobis":
        return mahalanobis_options(info, name.partition("-")[2])
    if entry.kind == "keep":
        return keep_options(entry.details["module"], entry.details["dtype"])
    how = norms_options(_layers(entry), entry.target, entry.temperature, entry.p)
    return (*how, *(("--gradients", entry.gradients) if entry.gradients != "rules" else ()))


def _layers(entry: PassInfo) -> str:
    plain = norms_name(entry.target, entry.temperature, entry.p)
    layers = entry.name.removeprefix(plain).removeprefix("-")
    return ",".join(entry.parameters) if layers.startswith(SELECTION) else layers or "all"
