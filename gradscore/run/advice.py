"""What messages tell the user to paste: commands that add to the run at hand, and to no other.

A run knows its model, weights, preprocessing, sets and how many images of each it took, so that a
command has to say only where the run is and what to record.
"""

import os
import shlex

from gradscore.errors import RunError
from gradscore.norms import number_name
from gradscore.run.layout import PassInfo, RunInfo
from gradscore.run.names import SELECTION, norms_name

Options = tuple[str, ...]


def extract_command(run: str | os.PathLike, *options: str) -> str:
    """Return the command that records something in a run, between backticks.

    >>> extract_command("my run", "--keep", "layer4")
    "`gradscore extract --run 'my run' --keep layer4`"
    """
    return f"`{shlex.join(('gradscore', 'extract', '--run', os.fspath(run), *options))}`"


def no_run(run: str | os.PathLike) -> RunError:
    """Return the error that there is no run in a directory."""
    command = extract_command(run, "--model", "SPEC", "--id", "NAME=PATH", "--ood", "NAME=PATH")
    return RunError(f"No run in {os.fspath(run)}; make one with {command}.")


def norms_options(layers: str, target: str, temperature: float, p: float) -> Options:
    """Return what records the gradient norms of ``layers``."""
    how = ("-p", number_name(p), "-T", number_name(temperature), "--target", target)
    return ("--layers", layers, *how)


def odin_options(temperature: float, epsilon: float) -> Options:
    """Return what records the logits of perturbed inputs."""
    how = ("-T", number_name(temperature), "--epsilon", number_name(epsilon))
    return ("--layers", "last", "--record", "odin", *how)


def mahalanobis_options(fit: str) -> Options:
    """Return what records every stage's confidence, fitted to a set."""
    return ("--layers", "last", "--record", "mahalanobis", "--fit", fit)


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
        return mahalanobis_options(name.partition("-")[2])
    if entry.kind == "keep":
        return keep_options(entry.details["module"], entry.details["dtype"])
    how = norms_options(_layers(entry), entry.target, entry.temperature, entry.p)
    return (*how, *(("--gradients", entry.gradients) if entry.gradients != "rules" else ()))


def _layers(entry: PassInfo) -> str:
    plain = norms_name(entry.target, entry.temperature, entry.p)
    layers = entry.name.removeprefix(plain).removeprefix("-")
    return ",".join(entry.parameters) if layers.startswith(SELECTION) else layers or "all"
