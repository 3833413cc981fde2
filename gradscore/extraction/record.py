"""Recording: images through the model, and their rows to shards.

Decoding (worker processes), copies to the device, the forward with its backwards, and writing (a
thread, so that the computation does not wait for the disk) overlap.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gradscore.choices import AUTO
from gradscore.data import ImageSet, batch_spans, decoding_processes, load_batches
from gradscore.errors import DataError
from gradscore.extraction.classifier import find_batch_size, recorded_batch_size
from gradscore.extraction.computing import Computer, Rows, SamePictures
from gradscore.extraction.plan import Plan, Stretch
from gradscore.extraction.probes import make_probes
from gradscore.extraction.resolved import Resolved
from gradscore.extraction.settings import Progress, Settings
from gradscore.run import BASE, FailedRow, RunStore
from gradscore.run.contents import logits_from, stored_arrays

SHARD_BYTES = 64 << 20
SHARD_SECONDS = 60.0
WAITING_BATCHES = 4
COMPARED = 256
"""Rows of a shard whose logits are compared with those that the stored features give."""


class Computed(NamedTuple):
    """The rows of one batch.

    Attributes:
        span: First image of the batch, and the one after its last.
        index: Places of the images that have rows, ``[n]``.
        rows: Pass name to array name to tensor ``[n, ...]``, in host memory once ``ready``.
        failed: Place and reason of each image that could not be read.
        ready: Event after which the copies from a GPU are complete, or None.
    """

    span: tuple[int, int]
    index: NDArray[np.int64]
    rows: Rows
    failed: Sequence[tuple[int, str]]
    ready: torch.cuda.Event | None


class ShardWriter:
    """Writes one stretch of a set, batch after batch; a ``with`` block finishes what it can.

    Args:
        store: The run, open for writing.
        images: The set.
        set_name: Its name in the run.
        stretch: Which of its images, and of which passes.
        settings: What the extraction is asked.
        how: What is recorded beside each shard.
        same: What compares the logits with those recorded; None where they are recorded now.
        head: The last layer's weights.
    """

    def __init__(
        self,
        store: RunStore,
        images: ImageSet,
        set_name: str,
        stretch: Stretch,
        settings: Settings,
        how: dict[str, object],
        same: SamePictures | None = None,
        head: Mapping[str, NDArray] | None = None,
    ) -> None:
        self._store, self._images, self._set = store, images, set_name
        self._passes, self._how, self._same = stretch.names, how, same
        self._shard_rows, self._skip = settings.shard_rows, settings.skip
        self._how_stored, self._head = settings.store, head if settings.store != "all" else None
        self._queue: queue.Queue[Computed | None] = queue.Queue(WAITING_BATCHES)
        self._error: BaseException | None = None
        self._clear(None)
        self._thread = threading.Thread(target=self._work, name="gradscore-writer", daemon=True)

    def __enter__(self) -> "ShardWriter":
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Write what is there, also after an error elsewhere, and end the thread."""
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and error is not self._error:
            raise self._error

    def check_failures(self, failed: Sequence[tuple[int, str]]) -> None:
        """Raise at an image that could not be read, unless such are skipped.

        Raises:
            DataError: What was wrong with it. It is raised also where the image has a row
                already, and so could be read before.
        """
        if failed and (not self._skip or BASE not in self._passes):
            hint = " Leave such images out with `on_error='skip'`." if not self._skip else ""
            raise DataError(f"{failed[0][1]}{hint}")

    def put(self, batch: Computed) -> None:
        """Hand over a batch; waits where writing falls behind.

        Raises:
            GradScoreError: What went wrong with an earlier batch.
        """
        if self._error is not None:
            raise self._error
        self._queue.put(batch)

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            if self._error is None:
                self._guarded(self._take, batch)
        # Rows before the one at fault are sound; where writing itself failed, so would this.
        if self._error is None or isinstance(self._error, DataError):
            self._guarded(self._flush)

    def _guarded(self, step: Callable, *arguments: object) -> None:
        try:
            step(*arguments)
        except BaseException as error:  # raised again where the rows come from
            self._error = self._error or error

    def _clear(self, start: int | None) -> None:
        self._start = self._stop = start
        self._index: list[NDArray] = []
        self._parts: dict[tuple[str, str], list[NDArray]] = {}
        self._failed: list[FailedRow] = []
        self._bytes, self._since = 0, time.monotonic()

    def _take(self, batch: Computed) -> None:
        if batch.ready is not None:
            batch.ready.synchronize()
        arrays = {
            (name, field): values.numpy()
            for name, fields in batch.rows.items()
            for field, values in fields.items()
        }
        if self._same is not None and len(batch.index):
            self._same.check(batch.index, arrays.pop((BASE, "logits")))
        failed = [FailedRow(i, self._images.paths[i], why) for i, why in batch.failed]
        kept = self._finite(batch, arrays, failed)
        if self._start is None:
            self._clear(batch.span[0])
        self._index.append(batch.index[kept])
        for key, values in arrays.items():
            # A copy, since features may be a view of much larger activations.
            part = np.array(values[kept])
            self._parts.setdefault(key, []).append(part)
            self._bytes += part.nbytes
        self._failed += sorted(failed, key=lambda row: row.index)
        self._stop = batch.span[1]
        rows = self._stop - self._start
        late = time.monotonic() - self._since > SHARD_SECONDS
        if rows >= self._shard_rows or self._bytes >= SHARD_BYTES or late:
            self._flush()

    def _finite(
        self, batch: Computed, arrays: dict[tuple[str, str], NDArray], failed: list[FailedRow]
    ) -> NDArray | slice:
        """Return which rows to keep; those that are not finite are refused, or join ``failed``."""
        bad = {}
        for (name, field), values in arrays.items():
            if not np.isfinite(values).all():
                rows = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
                bad |= {int(row): f"{field} of pass {name}" for row in rows if row not in bad}
        if not bad:
            return slice(None)
        for row, what in sorted(bad.items()):
            place = int(batch.index[row])
            path = self._images.paths[place]
            reason = f"{path} (image {place} of {self._set}): {what} are not finite."
            if not self._skip or BASE not in self._passes:
                raise DataError(reason)
            failed.append(FailedRow(place, path, reason))
        return np.setdiff1d(np.arange(len(batch.index)), list(bad))

    def _stored(self, base: dict[str, NDArray]) -> tuple[dict[str, NDArray], dict[str, float]]:
        """Return what is kept of base rows, and how far the logits are that it gives."""
        if self._head is None:
            return base, {}
        kept = stored_arrays(base, self._how_stored)
        if not np.isfinite(kept["features"]).all():
            raise DataError(
                f"Features of set {self._set} are beyond half precision's 65504; give "
                "`store='features'`."
            )
        some = slice(COMPARED)
        apart = np.abs(logits_from(self._head, kept["features"][some]) - base["logits"][some])
        return kept, {"logits_apart": float(apart.max(initial=0))}

    def _flush(self) -> None:
        how: dict[str, float] = {}
        if self._start is None or self._start == self._stop:
            return
        index = np.concatenate(self._index)
        content = {name: {"index": index} for name in self._passes}
        for (name, field), parts in self._parts.items():
            content[name][field] = np.concatenate(parts)
        if BASE in content:
            paths = np.array([self._images.paths[i] for i in index], dtype=object)
            content[BASE] |= {"path": paths, "label": self._images.labels[index]}
            content[BASE], how = self._stored(content[BASE])
        span = (self._start, self._stop)
        self._store.add_shards(self._set, content, span, self._failed, self._how | how)
        self._clear(None)


def record_stretch(
    store: RunStore,
    settings: Settings,
    resolved: Resolved,
    plan: Plan,
    name: str,
    stretch: Stretch,
) -> None:
    """Compute one stretch of a set, and write it.

    Args:
        store: The run, open for writing.
        settings: What the extraction is asked.
        resolved: What it is about.
        plan: What is to be recorded.
        name: Name of the set.
        stretch: Which of its images, and of which passes.

    Raises:
        DataError: If an image cannot be read, or is not the one that was recorded.
        ModelError: If the model does not return logits, or memory does not suffice.
        RunError: If a file cannot be written.
    """
    entry, images, classifier = store.sets[name], plan.sets[name], resolved.classifier
    device = classifier.device.type
    computer = Computer(
        classifier,
        resolved.image,
        base=stretch.base,
        passes=stretch.passes,
        probes=make_probes(classifier, stretch.passes, plan.fits),
    )
    size = settings.batch_size
    if size == AUTO:
        size = recorded_batch_size(entry, stretch.names, device) or find_batch_size(
            computer, resolved.image, classifier.device
        )
    loader = load_batches(
        images,
        resolved.model.preprocessing_of(name),
        batch_spans(stretch.start, stretch.stop, size),
        shape=resolved.info.input_shape,
        skipped=frozenset() if stretch.base else frozenset(row.index for row in entry.failed),
        workers=settings.workers,
        pin_memory=device == "cuda",
    )
    how = {
        "device": device,
        "batch_size": size,
        "workers": settings.workers,
        "layout": computer.layout,
    }
    same = (
        None
        if stretch.base
        else SamePictures(store.holder_of(name, BASE), images, name, stretch.start, device)
    )
    writer = ShardWriter(store, images, name, stretch, settings, how, same, resolved.head)
    with settings.piece_of_work(stretch.stop - stretch.start, name):
        _compute(loader, computer, writer, settings.progress)


def _compute(
    loader: torch.utils.data.DataLoader,
    computer: Computer,
    writer: ShardWriter,
    progress: Progress,
) -> None:
    """Compute the rows of every batch, and hand them to the writer."""
    with decoding_processes(), writer:
        for batch in loader:
            writer.check_failures(batch.failed)
            rows = computer(batch.images) if len(batch.index) else {}
            ready = torch.cuda.Event() if computer.on_cuda else None
            if ready is not None:
                ready.record()
            writer.put(Computed(batch.span, batch.index.numpy(), rows, batch.failed, ready))
            progress.advance(batch.span[1] - batch.span[0])
