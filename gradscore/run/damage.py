"""Damaged files of a run: what makes each of them again, once it is deleted."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from numpy.typing import NDArray

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
from gradscore.run.files import DamagedFile, write_arrays
from gradscore.run.layout import RunInfo


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
        delete = "delete it, then " if error.path.exists() else ""
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
    if folder == names.FITS:
        fit = info.fits[inner.removesuffix(names.FIT_ENDING)]
        if fit.method == "mahalanobis_stages":
            return extract_command(run, *mahalanobis_options(info, *fit.sets))
        how = ("--method", fit.method, "--fit", ",".join(fit.sets))
        return command("score", run, *how)
    if folder == names.HEAD_FILE:
        return extract_command(run, "--layers", "last")
    name = inner.partition("/")[0]
    return extract_command(run, *pass_options(info, name), *skipping(info, folder))


def mend(run: Path, info: RunInfo, head: Mapping[str, NDArray]) -> None:
    """Take what was deleted from a run for not recorded, so that it is recorded again.

    A pass grows from the first image on: with a shard all that are behind it are forgotten.

    Args:
        run: The run's directory, locked for writing.
        info: What ``run.json`` says; changed in place, for the next time it is written.
        head: The last layer's weights, written again if their file is gone.
    """
    if head and not (run / names.HEAD_FILE).exists():
        info.head.sha256 = write_arrays(run / names.HEAD_FILE, head)
    for entry in info.sets.values():
        for name, shards in entry.passes.items():
            gone = [place for place, s in enumerate(shards) if not (run / s.file).exists()]
            if gone and name == names.BASE:
                start = shards[gone[0]].start
                entry.failed = [row for row in entry.failed if row.index < start]
            del shards[gone[0] if gone else len(shards) :]
