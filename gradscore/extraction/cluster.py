"""Extraction on a cluster by Ray Core: the driver plans and writes, actors hold the model.

Each task makes the shards of some images. A task whose worker dies is given to another; shards
take their places in the order of their images, so that whatever ends the driver leaves a run that
either executor goes on with. The only importer of ray.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from gradscore.choices import AUTO
from gradscore.errors import GradScoreError, InvalidArgument, ModelError
from gradscore.extraction.plan import Plan, Stretch, stretches
from gradscore.extraction.resolved import Resolved
from gradscore.extraction.settings import Settings, Silent
from gradscore.extraction.task import Done, Task, Worker, clear, cut
from gradscore.run import RunStore
from gradscore.run.names import TASKS

MOST_DEATHS = 5
"""Workers that may die over one task, one after another."""
UNIT = 64
"""Images at whose multiples tasks are cut where the batch size is found by trying."""
AHEAD = 4
"""Tasks a worker that may be begun before that of the first images that lack is done."""


def require_ray() -> Any:
    """Return the module ray.

    Raises:
        InvalidArgument: If it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise InvalidArgument(
            "Expected ray for executor ray, which is not installed: pip install 'gradscore[ray]'."
        ) from None
    return ray


def record_on_cluster(store: RunStore, settings: Settings, resolved: Resolved, plan: Plan) -> None:
    """Record what the sets lack, on the workers of a cluster.

    Where ray is not running yet, a cluster of this machine is started, and stopped at the end.

    Args:
        store: The run, open for writing.
        settings: What the extraction is asked.
        resolved: What it is about.
        plan: What is to be recorded.

    Raises:
        GradScoreError: As where one process records; or if there are fewer places for actors than
            asked, or a task ended its workers again and again.
    """
    ray = require_ray()
    clear(store.path)
    with _cluster(ray):
        pool = _Pool(ray, settings, resolved, plan)
        try:
            for name in plan.sets:
                for stretch in stretches(store, name, plan.passes):
                    with settings.piece_of_work(stretch.stop - stretch.start, name):
                        _record(store, settings, pool, name, stretch)
                    settings.tell(f"{name}: {pool.rates.take()}")
        finally:
            pool.end()
    clear(store.path)
    (store.path / TASKS).rmdir()


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """Connect to a cluster that is running, or run one on this machine meanwhile."""
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


class _Rates:
    """How many images each node computes in a second, from one time that this is taken on."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()
        self._began: float | None = None

    def begin(self) -> None:
        """Start the clock, unless it runs: before the first task nothing is computed."""
        if self._began is None:
            self._began = time.monotonic()

    def add(self, node: str, rows: int) -> None:
        """Count images that an actor of a node has computed."""
        self._rows[node] += rows

    def take(self) -> str:
        """Return the rate of each node, all its actors together, and count anew."""
        if self._began is None or not self._rows:
            return "nothing was computed"
        seconds = time.monotonic() - self._began
        each = [f"{rows / seconds:,.0f} images/s on {node}" for node, rows in self._rows.items()]
        self._rows, self._began = Counter(), None
        return ", ".join(each)


class _Pool:
    """Actors that compute tasks; one that dies is replaced.

    Attributes:
        size: Number of actors.
        idle: Those that have no task.
        rates: How fast they are.
    """

    def __init__(self, ray: Any, settings: Settings, resolved: Resolved, plan: Plan) -> None:
        self._ray, self._busy = ray, {}
        on_gpu = resolved.classifier.device.type == "cuda"
        places = int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 0))
        count = settings.actors or places
        if not 1 <= count <= places:
            what = "GPUs" if on_gpu else "CPUs"
            raise InvalidArgument(
                f"Expected 1 to {places} actors, as the cluster has {places} {what}, got {count}."
            )
        self._actor = ray.remote(num_gpus=1 if on_gpu else 0, num_cpus=1)(_Actor)
        identities = {name: images.sha256 for name, images in plan.sets.items()}
        given = replace(settings, progress=Silent(), run=settings.run.absolute())
        self._given = ray.put((given, dict(plan.fits), identities))
        self.idle = [self._actor.remote(self._given) for _ in range(count)]
        self.size, self.rates = count, _Rates()

    def start(self, task: Task) -> None:
        """Give a task to an actor that has none."""
        self.rates.begin()
        actor = self.idle.pop()
        self._busy[actor.compute.remote(task)] = (actor, task)

    def finished(self) -> Iterator[tuple[Task, Done | None]]:
        """Wait for tasks; yield each that is done with what it gave, None where its actor died.

        Raises:
            GradScoreError: What went wrong with one, where it was not the loss of an actor.
        """
        ray = self._ray
        ready, _ = ray.wait(list(self._busy), num_returns=1)
        for reference in ready:
            actor, task = self._busy.pop(reference)
            try:
                done, error = ray.get(reference)
            except (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError):
                ray.kill(actor)
                self.idle.append(self._actor.remote(self._given))
                yield task, None
                continue
            if error is not None:
                raise error
            self.idle.append(actor)
            self.rates.add(done.node, task.stretch.stop - task.stretch.start)
            yield task, done

    def end(self) -> None:
        """End all actors, whatever they do."""
        for actor in [*self.idle, *(actor for actor, _ in self._busy.values())]:
            self._ray.kill(actor)


class _Actor:
    """A process of the cluster that holds a worker; errors of ours are values."""

    def __init__(self, given: tuple) -> None:
        self._worker, self._error = None, None
        try:
            self._worker = Worker(*given)
        except GradScoreError as error:
            self._error = _plain(error)

    def compute(self, task: Task) -> tuple[Done | None, GradScoreError | None]:
        """Return what a task gave, or what was wrong."""
        if self._error is not None:
            return None, self._error
        try:
            return self._worker.compute(task), None
        except GradScoreError as error:
            return None, _plain(error)


def _plain(error: GradScoreError) -> GradScoreError:
    """Return an error of the same kind that travels: without what it refers to."""
    kind = type(error)
    try:
        return kind(str(error))
    except TypeError:  # a kind that is made of more than a message
        return next(one for one in kind.__mro__[1:] if issubclass(one, GradScoreError))(str(error))


def _record(store: RunStore, settings: Settings, pool: _Pool, name: str, stretch: Stretch) -> None:
    """Have one stretch computed task by task, and give each shard its place in order."""
    unit = UNIT if settings.batch_size == AUTO else settings.batch_size
    rows = -(-settings.shard_rows // unit) * unit
    waiting = list(cut(Task(name, stretch, store.sets[name].failed), rows))[::-1]
    done: dict[int, Done] = {}
    place, deaths, ahead = stretch.start, Counter(), AHEAD * pool.size
    while place < stretch.stop:
        # What is done waits for its turn; the task whose turn it is must never wait for that.
        while waiting and pool.idle and waiting[-1].stretch.start < place + rows * ahead:
            pool.start(waiting.pop())
        for task, result in pool.finished():
            start = task.stretch.start
            if result is None:
                deaths[start] += 1
                if deaths[start] >= MOST_DEATHS:
                    raise ModelError(
                        f"{MOST_DEATHS} workers died one after another over images {start} to "
                        f"{task.stretch.stop} of set {name}; record them with `executor='local'` "
                        "to see why."
                    )
                waiting.append(task)
                waiting.sort(key=lambda one: -one.stretch.start)
                continue
            deaths.pop(start, None)
            done[start] = result
            while place in done:
                place = _adopt(store, name, stretch, done.pop(place))
            settings.progress.advance(task.stretch.stop - start)


def _adopt(store: RunStore, name: str, stretch: Stretch, result: Done) -> int:
    """Give the shards of a task their places in the run; return the image behind them."""
    for entry in stretch.passes:
        entry.rules = entry.rules or result.rules.get(entry.name, {})
    for step in result.steps:
        store.adopt_shards(name, step.files, step.span, step.failed, step.settings)
    return result.steps[-1].span[1]
