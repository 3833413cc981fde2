"""Damaged files of a run: what makes each of them again, once it is deleted."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gradscore.errors import RunError
from gradscore.run import names
from gradscore.run.advice import (
    command,
    extract_command,
    mahalanobis_options,
    new_run_command,
    pass_options,
    skipping,
)
from gradscore.run.files import DamagedFile
from gradscore.run.layout import RunInfo
from gradscore.run.named import naming_options


@contextmanager
def told(run: Path, info: RunInfo | None) -> Iterator[None]:
    """Add to an error about a damaged file what makes it again.

    Args:
        run: The run's directory.
        info: What ``run.json`` says; None where it is damaged itself.
    """
    try:
        yield
    except DamagedFile as error:
        again = f"make it again with {remedy(run, info, error.path.relative_to(run).as_posix())}"
        delete = "delete it, then " if os.path.lexists(error.path) else ""
        raise RunError(f"{error}; {delete}{again}.") from error


def remedy(run: Path, info: RunInfo | None, file: str) -> str:
    """Return the command that makes a file again after it was deleted, between backticks.

    Args:
        run: The run's directory.
        info: What ``run.json`` says; None where it is damaged itself: then all is recorded anew.
        file: The file, or the folder of a pass, below the run.
    """
    if info is None:
        return new_run_command(run)
    folder, _, inner = file.partition("/")
    named = naming_options(info)
    if folder == names.FITS:
        fit = info.fits[inner.removesuffix(names.FIT_ENDING)]
        if fit.method == "mahalanobis_stages":
            return extract_command(run, *named, *mahalanobis_options(info, *fit.sets))
        how = ("--method", fit.method, "--fit", ",".join(fit.sets))
        return command("score", run, *how)
    if folder == names.HEAD_FILE:
        return extract_command(run, *named, "--layers", "last")
    name = inner.partition("/")[0]
    return extract_command(run, *named, *pass_options(info, name), *skipping(info, folder))
