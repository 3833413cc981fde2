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
from gradscore.run.layout import FitInfo, RunInfo
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
    """Return what makes a file again after it was deleted: commands between backticks.

    Args:
        run: The run's directory.
        info: What ``run.json`` says; None where it is damaged itself: then all is recorded anew.
        file: The file below the run, or a folder: what makes all that is in it follows then.
    """
    folder, _, inner = file.partition("/")
    if info is None or folder not in (*info.sets, names.FITS, names.HEAD_FILE):
        return new_run_command(run)
    named = naming_options(info)
    if folder == names.HEAD_FILE:
        return extract_command(run, *named, "--layers", "last")
    if folder == names.FITS:
        fits = [info.fits[inner.removesuffix(names.FIT_ENDING)]] if inner else info.fits.values()
        commands = [_fit_command(run, info, fit) for fit in fits]
    else:
        passes = [inner.partition("/")[0]] if inner else info.sets[folder].passes
        skip = skipping(info, folder)
        commands = [
            extract_command(run, *named, *pass_options(info, name), *skip) for name in passes
        ]
    return " and ".join(dict.fromkeys(commands))


def _fit_command(run: Path, info: RunInfo, fit: FitInfo) -> str:
    if fit.method == "mahalanobis_stages":
        how = mahalanobis_options(info, *fit.sets)
        return extract_command(run, *naming_options(info), *how)
    return command("score", run, "--method", fit.method, "--fit", ",".join(fit.sets))
