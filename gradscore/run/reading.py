"""Streaming a set: blocks in index order, base and other passes joined, one block read ahead."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gradscore.run.files import DamagedFile
from gradscore.run.layout import SetInfo
from gradscore.run.names import BASE, pass_field
from gradscore.run.shard import OpenShard, open_shard

Block = dict[str, NDArray]
BASE_FIELDS = ("index", "path", "label", "features", "logits")
T = TypeVar("T")


def read_blocks(
    root: Path, entry: SetInfo, fields: Sequence[str], passes: Sequence[str], rows: int
) -> Iterator[Block]:
    """Yield blocks of a set; see :meth:`gradscore.run.RunStore.blocks`."""
    others = {name: _Rows(root, entry, name, pass_field(name)) for name in passes}
    try:
        for shard in entry.passes[BASE]:
            with open_shard(root, shard) as base:
                for start in range(0, shard.rows, rows):
                    stop = min(start + rows, shard.rows)
                    yield _join(base, start, stop, fields, others)
        for other in others.values():
            other.expect_end()
    finally:
        for other in others.values():
            other.close()


def _join(
    base: OpenShard, start: int, stop: int, fields: Sequence[str], others: dict[str, "_Rows"]
) -> Block:
    index = base.index[start:stop]
    block = {
        field: index if field == "index" else base.read(field, start, stop) for field in fields
    }
    for name, other in others.items():
        block[name] = other.take(index)
    return block


class _Rows:
    """A cursor over one pass of a set, whatever shards it was written in."""

    def __init__(self, root: Path, entry: SetInfo, name: str, field: str) -> None:
        self._root, self._path, self._field = root, root / entry.name / name, field
        self._shards = iter(entry.passes[name])
        self._stack = ExitStack()
        self._open: OpenShard | None = None
        self._place = 0

    def take(self, index: NDArray) -> NDArray:
        """Return the values of the next rows, which must be those of ``index``."""
        parts, found = [], 0
        while found < len(index):
            while self._open is None or self._place == len(self._open.index):
                self._advance()
            stop = min(len(self._open.index), self._place + len(index) - found)
            wanted = index[found : found + stop - self._place]
            if not np.array_equal(self._open.index[self._place : stop], wanted):
                raise self._disagreement()
            parts.append(self._open.read(self._field, self._place, stop))
            found += stop - self._place
            self._place = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def expect_end(self) -> None:
        """Raise if rows are left."""
        left = 0 if self._open is None else len(self._open.index) - self._place
        if left or any(shard.rows for shard in self._shards):
            raise self._disagreement()

    def close(self) -> None:
        self._stack.close()

    def _advance(self) -> None:
        shard = next(self._shards, None)
        if shard is None:
            raise self._disagreement()
        self._stack.close()
        self._open = self._stack.enter_context(open_shard(self._root, shard))
        self._place = 0

    def _disagreement(self) -> DamagedFile:
        return DamagedFile(self._path, "is damaged: its rows are not those of its base pass")


def ahead(make: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Yield what ``make()`` yields, produced one item ahead in a thread.

    The thread ends when the consumer does, also where it stops early; errors reach the consumer.
    """
    ready: queue.Queue = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(item: tuple[str, object]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            items = make()
            for item in items:
                if not put(("item", item)):
                    items.close()
                    return
            put(("end", None))
        except BaseException as error:
            put(("error", error))

    thread = threading.Thread(target=produce, name="gradscore-reader", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()
