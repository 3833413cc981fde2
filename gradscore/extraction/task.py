"""One task of a cluster: the rows of consecutive images, computed and written aside.

The rows come from the same function as where one process records. They are written into the run's
directory under a name that no other task has; the driver, which alone writes the run, gives each
file its place when it is its turn. A task may be computed any number of times.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gradscore.choices import AUTO
from gradscore.errors import DataError, RunError
from gradscore.extraction.classifier import float32_products
from gradscore.extraction.plan import Plan, Stretch
from gradscore.extraction.probes import StageFit
from gradscore.extraction.record import record_stretch
from gradscore.extraction.resolved import resolve
from gradscore.extraction.settings import Settings, Silent
from gradscore.run import BASE, FailedRow, SetInfo
from gradscore.run.building import build_shard
from gradscore.run.files import cannot_write
from gradscore.run.names import TASKS
from gradscore.run.reader import RunReader
from gradscore.run.writer import write_new


@dataclass(frozen=True)
class Task:
    """What a worker computes at once.

    Attributes:
        set: Name of the set.
        stretch: Which of its images, and of which passes.
        failed: Images of the stretch that are known to have no row.
    """

    set: str
    stretch: Stretch
    failed: Sequence[FailedRow]


@dataclass
class Step:
    """The shards of some of a task's images, written aside.

    Attributes:
        files: Pass name to file below the run, its SHA-256 and its number of rows.
        span: First image covered, and the one after the last.
        failed: Images of the span that have no row.
        settings: Device, batch size and so on.
    """

    files: dict[str, tuple[str, str, int]]
    span: tuple[int, int]
    failed: list[FailedRow]
    settings: dict[str, Any]


@dataclass
class Done:
    """What a task gave.

    Attributes:
        steps: The shards in the order of their images.
        rules: Name of each norm pass to what computed each parameter's norm.
        node: Where it was computed.
    """

    steps: list[Step] = field(default_factory=list)
    rules: dict[str, dict[str, str]] = field(default_factory=dict)
    node: str = ""


class TaskStore:
    """The run as a task sees it: it reads what is recorded, and writes shards aside.

    Args:
        path: The run's directory.
        entry: The set.
    """

    def __init__(self, path: Path, entry: SetInfo) -> None:
        self.path, self.sets, self.steps = path, {entry.name: entry}, []

    def holder_of(self, set_name: str, name: str) -> RunReader:
        """Return what holds the rows of a pass that is recorded."""
        return RunReader(self.path)

    def add_shards(
        self,
        set_name: str,
        arrays: Mapping[str, Mapping[str, NDArray]],
        span: tuple[int, int],
        failed: Sequence[FailedRow] = (),
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Write the next shard of one or more passes aside.

        Raises:
            RunError: If a file cannot be written.
        """
        files = {}
        for name, content in arrays.items():
            built = build_shard(content)
            file = f"{TASKS}/{secrets.token_hex(16)}.h5"
            try:
                write_new(self.path / file, built)
            except OSError as error:
                raise cannot_write(self.path / file, error) from error
            digest = hashlib.sha256(built).hexdigest()
            files[name] = (file, digest, len(content["index"]))
        self.steps.append(Step(files, span, list(failed), dict(settings or {})))


class Worker:
    """What computes tasks: it holds the model and the sets.

    Args:
        settings: What the extraction is asked.
        fits: What passes of Mahalanobis are computed with.
        identities: Name of each set to the SHA-256 of its list, as the driver has it.
    """

    def __init__(
        self, settings: Settings, fits: Mapping[str, StageFit], identities: Mapping[str, str]
    ) -> None:
        self._settings = replace(settings, progress=Silent())
        self._products = float32_products(settings.precision)
        self._products.__enter__()
        self._resolved = resolve(self._settings)
        for name, identity in identities.items():
            images = self._resolved.sets.get(name)
            if images is None or images.sha256 != identity:
                raise DataError(
                    f"Expected the same images of set {name} on every machine, got others on "
                    f"{os.uname().nodename}; put them on a disk that all of them share."
                )
        self._fits = fits

    def compute(self, task: Task) -> Done:
        """Return what was computed and written aside.

        Raises:
            GradScoreError: As where one process records.
        """
        resolved, name, stretch = self._resolved, task.set, task.stretch
        images = resolved.sets[name]
        entry = SetInfo(name, None, "", images.sha256, len(images), failed=list(task.failed))
        store = TaskStore(self._settings.run, entry)
        plan = Plan(resolved.sets, stretch.passes, self._fits, ())
        record_stretch(store, self._settings, resolved, plan, name, stretch)
        if self._settings.batch_size == AUTO and store.steps:  # found once
            size = store.steps[0].settings["batch_size"]
            self._settings = replace(self._settings, batch_size=size)
        rules = {one.name: one.rules for one in stretch.passes if one.rules}
        return Done(store.steps, rules, os.uname().nodename)


def cut(task: Task, rows: int) -> Iterable[Task]:
    """Yield the tasks of a stretch, each of ``rows`` images at multiples of them, or fewer."""
    start, end = task.stretch.start, task.stretch.stop
    while start < end:
        stop = min(end, start - start % rows + rows)
        failed = [row for row in task.failed if start <= row.index < stop]
        stretch = task.stretch._replace(start=start, stop=stop)
        yield Task(task.set, stretch, [] if BASE in stretch.names else failed)
        start = stop


def clear(path: Path) -> None:
    """Make the folder of files that are written aside, and remove what is left in it.

    Raises:
        RunError: If a link stands in its place, or it cannot be made.
    """
    folder = path / TASKS
    if folder.is_symlink():
        raise RunError(f"Expected the folder of a run's tasks, got the link {folder}; delete it.")
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    for file in folder.iterdir():
        with suppress(OSError):
            file.unlink()
