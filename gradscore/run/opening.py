"""Opening a shard of a run that is not trusted: its bytes first, then what they declare.

HDF5 sees no byte before the SHA-256 was compared, and is asked only where each chunk lies: no
filter, link, type or size of the file's own choosing is followed, and rows are taken out of the
hashed bytes themselves.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5l, h5t, h5z
from numpy.typing import NDArray

from gradscore.run.content import Content, HashedFiles
from gradscore.run.fields import Field, expected_index, fields_of
from gradscore.run.files import DamagedFile, damage
from gradscore.run.layout import RunInfo, SetInfo, Shard
from gradscore.run.shard import CHUNK_BYTES

CHECKSUM_BYTES = 4


class ShardReader:
    """Opens the shards of one pass of a set, one at a time; its memory is used again.

    Args:
        root: The run's directory.
        info: What the run is about.
        entry: The set.
        name: The pass.
    """

    def __init__(self, root: Path, info: RunInfo, entry: SetInfo, name: str) -> None:
        self.root = root
        self.shards, self.fields = entry.passes[name], fields_of(info, name)
        self._files = HashedFiles(root)
        self._failed = np.array([row.index for row in entry.failed], np.int64)

    @contextmanager
    def open(self, shard: Shard) -> Iterator["OpenShard"]:
        """Open a shard for reading.

        Raises:
            DamagedFile: If it is missing, its SHA-256 is not the recorded one, or it does not
                hold the rows of its images as the pass has them.
            RunError: If it may not be read.
        """
        path = self.root / shard.file
        with self._files.open(shard.file, shard.sha256) as content:
            with damage(path):
                file = h5py.File(content, "r")
            with file:
                with damage(path):
                    opened = OpenShard(file, content, path, self.fields, shard, self._failed)
                yield opened


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
    """

    def __init__(
        self,
        file: h5py.File,
        content: Content,
        path: Path,
        fields: Mapping[str, Field],
        shard: Shard,
        failed: NDArray[np.int64],
    ) -> None:
        self._content, self._path = content, path
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
        missing = np.searchsorted(failed, shard.stop) - np.searchsorted(failed, shard.start)
        if shard.rows != shard.stop - shard.start - missing or not np.array_equal(
            self.index, expected_index(shard.start, shard.stop, failed)
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
            return result

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


def _plain_type(kind: h5t.TypeID) -> np.dtype | None:
    """Return the NumPy type of numbers, or of UTF-8 text of one length; None for any other."""
    if isinstance(kind, h5t.TypeStringID):
        plain = not kind.is_variable_str() and kind.get_cset() == h5t.CSET_UTF8
        return np.dtype(f"S{kind.get_size()}") if plain else None
    return kind.dtype if isinstance(kind, h5t.TypeIntegerID | h5t.TypeFloatID) else None
