"""Streaming a set: blocks in index order, base and other passes joined."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscore.run.files import DamagedFile
from gradscore.run.hashed import AHEAD
from gradscore.run.layout import BASE, BLOCKS, RunInfo, SetInfo
from gradscore.run.shard import OpenShard, ShardReader

Block = dict[str, NDArray]
BASE_FIELDS = ("index", "path", "label", "features", "logits")
BLOCK_BYTES = 8 << 20
"""Bytes of a block's features and logits, at most: what is computed of them takes many times as
much."""


def most_rows(info: RunInfo, fields: Sequence[str], rows: int) -> int:
    """Return how many rows a block has, at most: ``rows``, or fewer where they are wide.

    Args:
        info: What the run is about.
        fields: What is read of the base pass.
        rows: How many are asked at once.

    Returns:
        At least 1; where it is fewer, a power of two, as chunks in a file have.
    """
    widths = {"features": info.features, "logits": info.classes}
    held = BLOCK_BYTES // max(1, 4 * sum(widths.get(field, 0) for field in fields))
    return rows if rows <= held else 1 << max(0, held.bit_length() - 1)


def read_blocks(
    root: Path,
    info: RunInfo,
    entry: SetInfo,
    fields: Sequence[str],
    passes: Sequence[str],
    rows: int,
) -> Iterator[Block]:
    """Yield blocks of a set; see :meth:`gradscore.run.RunStore.blocks`."""
    readers = [ShardReader(root, info, entry, name) for name in (BASE, *passes)]
    for fault in (fault for reader in readers for fault in reader.range_faults()):
        raise fault
    with ExitStack() as stack:
        base, others = readers[0], [Rows(reader) for reader in readers[1:]]
        for one in (base, *others):
            stack.callback(one.close)
        for place, shard in enumerate(base.shards):
            with base.open(shard, base.shards[place + 1 : place + 1 + AHEAD]) as opened:
                for start in range(0, shard.rows, rows):
                    stop = min(start + rows, shard.rows)
                    yield _join(opened, start, stop, fields, others)
        for other in others:
            other.expect_end()


def _join(
    base: OpenShard, start: int, stop: int, fields: Sequence[str], others: Sequence["Rows"]
) -> Block:
    index = base.index[start:stop]
    block = {
        field: index if field == "index" else base.read(field, start, stop) for field in fields
    }
    for other in others:
        block |= other.take(index)
    return block


class Rows:
    """A cursor over one pass of a set, whatever shards it was written in.

    Args:
        reader: Opens the shards of the pass.
        fields: Which of its datasets; by default all.
        start: First image.
    """

    def __init__(
        self, reader: ShardReader, fields: Sequence[str] | None = None, start: int = 0
    ) -> None:
        self._reader, self._start = reader, start
        self._shards = deque(shard for shard in reader.shards if shard.stop > start)
        if fields is None:
            fields = [field for field in reader.fields if field != "index"]
        name = reader.name
        self._keys = {field: f"{name}/{field}" if name == BLOCKS else name for field in fields}
        self._stack = ExitStack()
        self._open: OpenShard | None = None
        self._place = 0

    def take(self, index: NDArray) -> Block:
        """Return the values of the next rows, one or more, which must be those of ``index``.

        They are named after the pass; those of the blocks ``blocks/NAME``.

        Raises:
            DamagedFile: If they are others.
        """
        parts, found = [], 0
        while found < len(index):
            while self._open is None or not self._left():
                self._advance()
            stop = min(len(self._open.index), self._place + len(index) - found)
            wanted = index[found : found + stop - self._place]
            if not np.array_equal(self._open.index[self._place : stop], wanted):
                raise self._disagreement()
            parts.append(
                {
                    key: self._open.read(field, self._place, stop)
                    for field, key in self._keys.items()
                }
            )
            found += stop - self._place
            self._place = stop
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def expect_end(self) -> None:
        """Raise if rows are left.

        Raises:
            DamagedFile: If they are.
        """
        if (self._open and self._left()) or any(shard.rows for shard in self._shards):
            raise self._disagreement()

    def close(self) -> None:
        """Close the shard that is open, and its reader."""
        self._stack.close()
        self._reader.close()

    def _left(self) -> int:
        return len(self._open.index) - self._place

    def _advance(self) -> None:
        if not self._shards:
            raise self._disagreement()
        shard = self._shards.popleft()
        self._stack.close()
        self._open = self._stack.enter_context(self._reader.open(shard, self._shards))
        self._place = int(np.searchsorted(self._open.index, self._start))

    def _disagreement(self) -> DamagedFile:
        return DamagedFile(
            self._reader.folder, "is damaged: its rows are not those of its base pass"
        )
