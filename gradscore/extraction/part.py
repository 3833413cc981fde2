"""Which part of a run a process records: ``I/N``, or what a cluster's job says of itself."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from gradscore.errors import InvalidArgument

FORMS = "I/N with 1 <= I <= N, such as 3/8; or env, or env/N"
MOST_PARTS = 999_999_999


class _Job(NamedTuple):
    """The variables in which a kind of cluster numbers the tasks of a job.

    Attributes:
        number: Holds the task's number.
        count: Holds the number of tasks.
        first: Holds the first task's number; without it that is 0.
    """

    number: str
    count: str
    first: str | None = None


JOBS = (
    _Job("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
    _Job("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
    _Job("RANK", "WORLD_SIZE"),
)
"""Slurm's job arrays, Kubernetes' indexed jobs (whose manifest sets the second), torchrun."""


def parse_part(
    part: str | tuple[int, int] | None, environ: Mapping[str, str] | None = None
) -> tuple[tuple[int, int] | None, str]:
    """Return number and count of the part that is meant, and where they come from.

    Args:
        part: ``I/N`` or the two numbers, counted from 1; ``env`` for those of the job that this
            process is a task of, ``env/N`` where the job does not say how many there are; None
            for no part.
        environ: The process's variables; by default those of this one.

    Returns:
        The two numbers or None, and a sentence where variables gave them, or an empty text.

    Raises:
        InvalidArgument: If it is of another form, or the variables do not say.

    >>> parse_part("3/8")
    ((3, 8), '')
    >>> parse_part("env", {"RANK": "0", "WORLD_SIZE": "4"})
    ((1, 4), 'Part 1/4, as RANK=0 and WORLD_SIZE=4 say.')
    """
    if part is None:
        return None, ""
    if isinstance(part, str):
        head, slash, tail = part.partition("/")
        if head == "env":
            count = _whole(tail) if slash else None
            if slash and count is None:
                raise InvalidArgument(f"Expected a part {FORMS}, got {part!r}.")
            return _of_job(os.environ if environ is None else environ, count)
        numbers = (_whole(head), _whole(tail))
    else:
        numbers = tuple(part) if isinstance(part, tuple | list) else ()
    if len(numbers) != 2 or not all(type(n) is int for n in numbers):
        raise InvalidArgument(f"Expected a part {FORMS}, got {part!r}.")
    number, count = numbers
    if not 1 <= number <= count <= MOST_PARTS:
        raise InvalidArgument(f"Expected a part {FORMS}, got {part!r}.")
    return (number, count), ""


def _of_job(environ: Mapping[str, str], count: int | None) -> tuple[tuple[int, int], str]:
    """Return the part that a job's variables say; of two jobs in one, neither is guessed."""
    there = [job for job in JOBS if job.number in environ]
    if len(there) != 1:
        known = ", ".join(f"{job.number} and {job.count}" for job in JOBS)
        got = " and ".join(job.number for job in there) or "none of them"
        raise InvalidArgument(
            f"Expected the variables of one kind of job ({known}), got {got}; give `part='I/N'`."
        )
    (job,) = there
    said = {job.number: environ[job.number]}
    first = 0
    if job.first in environ:
        said[job.first] = environ[job.first]
        first = _whole(environ[job.first])
    if count is None:
        if job.count not in environ:
            raise InvalidArgument(
                f"Expected the number of tasks in {job.count} beside {job.number}, got none; "
                "give `part='env/N'`."
            )
        said[job.count] = environ[job.count]
        count = _whole(environ[job.count])
    told = " and ".join(f"{name}={value}" for name, value in said.items())
    number = _whole(environ[job.number])
    if None in (number, first, count) or not first <= number < first + count <= MOST_PARTS:
        raise InvalidArgument(
            f"Expected {job.number} to be one of a job's numbers, each a step of 1 from the one "
            f"before, got {told}; give `part='I/N'`."
        )
    number += 1 - first
    return (number, count), f"Part {number}/{count}, as {told} say."


def _whole(text: str) -> int | None:
    """Return the number that plain digits are, or None."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
