"""One shard opened: an HDF5 file with a checksum on each chunk of every dataset.

A shard that is opened is not trusted. HDF5 sees no byte before the SHA-256 was compared, and is
asked only where each chunk lies: no filter, link, type or size of the file's own choosing is
followed, and rows are taken out of the hashed bytes themselves.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5l, h5t, h5z
from numpy.typing import NDArray

from gradscore.run.building import CHUNK_BYTES
from gradscore.run.contents import Arrays, Field, fields_of, logits_from, read_head
from gradscore.run.files import DamagedFile, damage
from gradscore.run.hashed import HashedFile, HashedFiles
from gradscore.run.layout import BASE, RunInfo, SetInfo, Shard

CHECKSUM_BYTES = 4
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
        files: What opens their files.
    """

    def __init__(self, root: Path, info: RunInfo, entry: SetInfo, name: str) -> None:
        self.name, self.folder = name, root / entry.name / name
        self.shards, self.fields = entry.passes[name], fields_of(info, name)
        self._root, self._span, self.files = root, (entry.start, entry.stop), HashedFiles(root)
        self._failed = np.array([row.index for row in entry.failed], np.int64)
        self._info, self._head = info, {}

    @contextmanager
    def open(self, shard: Shard) -> Iterator["OpenShard"]:
        """Open a shard for reading.

        Raises:
            DamagedFile: If it is missing, its SHA-256 is not the recorded one, or it does not
                hold the rows of its images as the pass has them.
            RunError: If it may not be read.
        """
        path = self._root / shard.file
        with self.files.open(shard.file, shard.sha256) as content:
            with damage(path):
                file = h5py.File(content, "r")
            with file:
                with damage(path):
                    opened = OpenShard(file, content, path, self.fields, shard, self._failed)
                    opened.head = self._last_layer()
                yield opened

    def _last_layer(self) -> Arrays:
        """Return what makes the logits of the features, where they are not stored."""
        if not self._head and self.name == BASE and "logits" not in self.fields:
            self._head = read_head(self._root, self._info)
        return self._head

    def verify(self, shard: Shard) -> None:
        """Read every row of a shard.

        Raises:
            DamagedFile: If it is damaged, or a value is not finite.
            RunError: If it may not be read.
        """
        with self.open(shard) as opened:
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


class _Dataset(NamedTuple):
    """A dataset that is as it was written.

    Attributes:
        place: Where HDF5 has it.
        dtype: Its type; bytes of one length for text.
        shape: Of one row.
        rows: Of one chunk.
        stored: Bytes of one chunk in the file.
    """

    place: h5d.DatasetID
    dtype: np.dtype
    shape: tuple[int, ...]
    rows: int
    stored: int


class OpenShard:
    """A shard's datasets, each of the type, shape and size that its pass and images give it.

    Attributes:
        index: Places of its images, ``[rows]``.
        head: The last layer, where it makes the logits of the features.
    """

    def __init__(
        self,
        file: h5py.File,
        content: HashedFile,
        path: Path,
        fields: Mapping[str, Field],
        shard: Shard,
        failed: NDArray[np.int64],
    ) -> None:
        self._content, self._path = content, path
        self.head: Arrays = {}
        self.index = np.empty(0, np.int64)
        if not shard.rows:  # no image could be read; of what type it was, no one knew
            return
        count = file.id.get_num_objs()
        strange = [name for name in fields if not file.id.links.exists(name.encode())]
        if strange or count != len(fields):
            what = f"{strange[0]!r} is not among them" if strange else f"there are {count}"
            raise self._fault(f"expected the datasets {', '.join(fields)}; {what}")
        self._datasets = {
            name: self._dataset(file.id, name, field, shard.rows) for name, field in fields.items()
        }
        # No filter makes anything smaller: what is declared must be there.
        declared = sum(
            shard.rows * known.dtype.itemsize * int(np.prod(known.shape, dtype=object))
            for known in self._datasets.values()
        )
        if declared > content.size:
            raise self._fault(f"it declares {declared:,} bytes, and has {content.size:,}")
        self.index = self.read("index", 0, shard.rows)
        if shard.rows != _expected_rows(shard, failed) or not np.array_equal(
            self.index, _expected_index(shard, failed)
        ):
            raise self._fault(
                f"expected the rows of the images {shard.start} to {shard.stop}, got "
                f"{shard.rows} others"
            )

    def read(self, field: str, start: int, stop: int) -> NDArray:
        """Return rows ``start`` to ``stop`` of a dataset; text as Python strings.

        Raises:
            DamagedFile: If a part of it is absent, or the file changed since it was opened.
        """
        if field == "logits" and self.head:
            return logits_from(self.head, self.read("features", start, stop))
        with damage(self._path):
            known = self._datasets[field]
            result = np.empty((stop - start, *known.shape), known.dtype)
            first = start - start % known.rows
            for begin in range(first, stop, known.rows):
                low, high = max(start, begin), min(stop, begin + known.rows)
                if result.size:
                    result[low - start : high - start] = self._chunk(known, begin)[
                        low - begin : high - begin
                    ]
            if not self._content.unchanged():
                raise self._fault("it changed while it was read")
            if known.dtype.kind == "S":
                texts = [text.decode(errors="surrogateescape") for text in result.tolist()]
                return np.array(texts, dtype=object)
            return result.astype(np.float32, copy=False) if field == "features" else result

    def _chunk(self, known: _Dataset, begin: int) -> NDArray:
        """Return the rows of one chunk, where they lie in the file."""
        found = known.place.get_chunk_info_by_coord((begin, *(0 for _ in known.shape)))
        if found.byte_offset is None or found.filter_mask or found.size != known.stored:
            raise self._fault(f"a chunk of {known.stored} bytes is not there")
        size = known.rows * known.dtype.itemsize * int(np.prod(known.shape, dtype=int))
        raw = self._content.at(found.byte_offset, size)
        if len(raw) < size:
            raise self._fault("a chunk lies behind its end")
        return np.frombuffer(raw, known.dtype).reshape(known.rows, *known.shape)

    def _dataset(self, group: h5py.h5g.GroupID, name: str, field: Field, rows: int) -> _Dataset:
        """Return a dataset of the group if it is what the writer makes, and nothing else."""
        key = name.encode()
        # Links are looked at before they are followed: some lead to other files.
        if group.links.get_info(key).type != h5l.TYPE_HARD:
            raise self._fault(f"{name} is a link")
        place = h5py.h5o.open(group, key)
        if not isinstance(place, h5d.DatasetID):
            raise self._fault(f"{name} is no dataset")
        made = place.get_create_plist()
        filters = [made.get_filter(number)[0] for number in range(made.get_nfilters())]
        if made.get_layout() != h5d.CHUNKED or made.get_external_count():
            raise self._fault(f"{name} is not stored in chunks of this file")
        if filters not in ([], [h5z.FILTER_FLETCHER32]):
            raise self._fault(f"{name} passes a filter that is not used here")
        dtype = _plain_type(place.get_type())
        text = field.dtype is None and dtype is not None and dtype.kind == "S"
        if dtype is None or not (text or dtype == field.dtype):
            wanted = field.dtype or "text of a fixed length"
            raise self._fault(f"expected {name} of {wanted}, got another type")
        chunk, shape = made.get_chunk(), place.shape
        if shape != (rows, *field.shape):
            raise self._fault(
                f"expected {name} of shape {[rows, *field.shape]}, got {list(shape)}"
            )
        row_bytes = dtype.itemsize * int(np.prod(field.shape, dtype=object))
        size = chunk[0] * row_bytes
        if chunk[1:] != field.shape or size > max(CHUNK_BYTES, row_bytes):
            raise self._fault(f"{name} is cut into chunks of {list(chunk)}")
        return _Dataset(place, dtype, field.shape, chunk[0], size + CHECKSUM_BYTES * len(filters))

    def _fault(self, what: str) -> DamagedFile:
        return DamagedFile(self._path, f"is damaged: {what}")


def _expected_rows(shard: Shard, failed: NDArray[np.int64]) -> int:
    """Return how many images of a shard have rows; ``failed`` have none, in ascending order."""
    first, last = np.searchsorted(failed, (shard.start, shard.stop))
    return shard.stop - shard.start - int(last - first)


def _expected_index(shard: Shard, failed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of the images of a shard that have rows."""
    first, last = np.searchsorted(failed, (shard.start, shard.stop))
    return np.delete(np.arange(shard.start, shard.stop), failed[first:last] - shard.start)


def _plain_type(kind: h5t.TypeID) -> np.dtype | None:
    """Return the NumPy type of numbers, or of UTF-8 text of one length; None for any other."""
    if isinstance(kind, h5t.TypeStringID):
        plain = not kind.is_variable_str() and kind.get_cset() == h5t.CSET_UTF8
        return np.dtype(f"S{kind.get_size()}") if plain else None
    return kind.dtype if isinstance(kind, h5t.TypeIntegerID | h5t.TypeFloatID) else None
