"""One shard opened: an HDF5 file with a checksum on each chunk of every dataset.

A shard that is opened is not trusted. HDF5 sees no byte before the SHA-256 was compared, and rows
are taken out of the hashed bytes themselves.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscore.run.chunks import ChunkFinder, Chunks
from gradscore.run.contents import Arrays, fields_of, logits_from, read_head
from gradscore.run.files import DamagedFile, damage
from gradscore.run.hashed import AHEAD, HashedFile, HashedFiles
from gradscore.run.layout import BASE, RunInfo, SetInfo, Shard

CHANGED = "it changed while it was read"
PART_BYTES = 1 << 24
"""Bytes of a dataset that are read at once where every row is verified."""


class ShardReader:
    """Opens the shards of one pass of a set, one at a time; its memory is used again.

    Args:
        root: The run's directory.
        info: What the run is about.
        entry: The set.
        name: The pass.

    Attributes:
        name: The pass.
        folder: Where its shards are.
        shards: Its shards in index order.
        fields: The datasets that each of them holds.
    """

    def __init__(self, root: Path, info: RunInfo, entry: SetInfo, name: str) -> None:
        self.name, self.folder = name, root / entry.name / name
        self.shards, self.fields = entry.passes[name], fields_of(info, name)
        self._root, self._span, self._files = root, (entry.start, entry.stop), HashedFiles(root)
        self._failed = np.array([row.index for row in entry.failed], np.int64)
        self._info, self._head, self._finder = info, {}, ChunkFinder(self.fields)

    @contextmanager
    def open(self, shard: Shard, following: Iterable[Shard] = ()) -> Iterator["OpenShard"]:
        """Open a shard for reading.

        Args:
            shard: One of the pass.
            following: Those that will be opened next, in turn; the first of them are read and
                hashed beside the use of this one.

        Raises:
            DamagedFile: If it is missing, its SHA-256 is not the recorded one, or it does not
                hold the rows of its images as the pass has them.
            RunError: If it may not be read.
        """
        path = self._root / shard.file
        ahead = [one.file for one in islice(following, AHEAD)]
        with self._files.open(shard.file, shard.sha256, ahead) as content:
            with damage(path):
                chunks = self._finder.find(content, shard.rows)
                opened = OpenShard(content, path, chunks, shard, self._failed)
                opened.head = self._last_layer()
            yield opened

    def close(self) -> None:
        """End what goes on beside: nothing is opened afterwards."""
        self._files.close()

    def _last_layer(self) -> Arrays:
        """Return what makes the logits of the features, where they are not stored."""
        if not self._head and self.name == BASE and "logits" not in self.fields:
            self._head = read_head(self._root, self._info)
        return self._head

    def verify(self, shard: Shard, following: Iterable[Shard] = ()) -> None:
        """Read every row of a shard.

        Args:
            shard: One of the pass.
            following: As of :meth:`open`.

        Raises:
            DamagedFile: If it is damaged, or a value is not finite.
            RunError: If it may not be read.
        """
        with self.open(shard, following) as opened:
            for name, field in self.fields.items():
                rows = max(1, PART_BYTES // max(1, field.row_bytes))
                for start in range(0, shard.rows, rows):
                    values = opened.read(name, start, min(start + rows, shard.rows))
                    if values.dtype.kind == "f" and not np.isfinite(values).all():
                        raise DamagedFile(
                            self._root / shard.file, f"is damaged: {name} are not all finite"
                        )

    def range_faults(self, *, exactly: bool = True) -> Iterator[DamagedFile]:
        """Yield where the shards do not cover the set as its images and failures say.

        No file is read.

        Args:
            exactly: Whether the failures that are known are all; while a deleted shard is made
                again those of its images are not known.
        """
        expected, end = self._span
        for shard in self.shards:
            path, span = self._root / shard.file, shard.stop - shard.start
            if shard.start != expected or not shard.start <= shard.stop <= end:
                yield DamagedFile(
                    path,
                    f"expected images from {expected} on, got {shard.start} to {shard.stop} "
                    f"of {end}",
                )
            rows = _expected_rows(shard, self._failed)
            if shard.rows != rows if exactly else not 0 <= shard.rows <= span:
                yield DamagedFile(
                    path, f"expected {rows} rows, got {shard.rows} in pass {self.name}"
                )
            expected = shard.stop


class OpenShard:
    """A shard's datasets, each of the type, shape and size that its pass and images give it.

    Attributes:
        index: Places of its images, ``[rows]``.
        head: The last layer, where it makes the logits of the features.
    """

    def __init__(
        self,
        content: HashedFile,
        path: Path,
        chunks: Mapping[str, Chunks],
        shard: Shard,
        failed: NDArray[np.int64],
    ) -> None:
        self._content, self._path, self._chunks = content, path, chunks
        self.head: Arrays = {}
        self.index = self.read("index", 0, shard.rows) if chunks else np.empty(0, np.int64)
        expected = _expected_index(shard, failed)
        if shard.rows and not np.array_equal(self.index, expected):
            raise DamagedFile(
                path,
                f"is damaged: expected the rows of the images {shard.start} to {shard.stop}, got "
                f"{shard.rows} others",
            )

    def read(self, field: str, start: int, stop: int) -> NDArray:
        """Return rows ``start`` to ``stop`` of a dataset; text as Python strings.

        Raises:
            DamagedFile: If a part of it is absent, or the file changed since it was opened.
        """
        if field == "logits" and self.head:
            return logits_from(self.head, self.read("features", start, stop))
        with damage(self._path):
            known = self._chunks[field]
            result = np.empty((stop - start, *known.shape), known.dtype)
            for number in range(start // known.rows, -(-stop // known.rows)):
                begin = number * known.rows
                low, high = max(start, begin), min(stop, begin + known.rows)
                part = self._chunk(known, number)[low - begin : high - begin]
                result[low - start : high - start] = part
            if not self._content.unchanged():
                raise ValueError(CHANGED)
            if known.dtype.kind == "S":
                return _decoded(result.tolist())
            return result.astype(np.float32, copy=False) if field == "features" else result

    def _chunk(self, known: Chunks, number: int) -> NDArray:
        """Return the rows of one chunk, where they lie in the file."""
        raw = self._content.at(known.places[number], known.chunk_bytes)
        if len(raw) < known.chunk_bytes:
            raise ValueError(CHANGED)
        return np.frombuffer(raw, known.dtype).reshape(known.rows, *known.shape)


def _decoded(texts: list[bytes]) -> NDArray:
    """Return texts as Python strings, ``[rows]``."""
    joined = b"\0".join(texts).decode(errors="surrogateescape").split("\0") if texts else []
    if len(joined) != len(texts):  # one holds a zero itself
        joined = [text.decode(errors="surrogateescape") for text in texts]
    return np.array(joined, dtype=object)


def _expected_rows(shard: Shard, failed: NDArray[np.int64]) -> int:
    """Return how many images of a shard have rows; ``failed`` have none, in ascending order."""
    first, last = np.searchsorted(failed, (shard.start, shard.stop))
    return shard.stop - shard.start - int(last - first)


def _expected_index(shard: Shard, failed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of the images of a shard that have rows."""
    first, last = np.searchsorted(failed, (shard.start, shard.stop))
    return np.delete(np.arange(shard.start, shard.stop), failed[first:last] - shard.start)
