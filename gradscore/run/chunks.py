"""Where the rows of a shard lie in its file, as HDF5 says.

HDF5 is asked only where each chunk lies: no filter, link, type or size of the file's own choosing
is followed. That takes longer than hashing a small shard, and most shards of a pass are alike: of
a file that equals another at every place that HDF5 looked at there, it would say the same.
"""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import h5py
import numpy as np
from h5py import h5d, h5l, h5t, h5z

from gradscore.run.building import CHUNK_BYTES
from gradscore.run.contents import Field
from gradscore.run.hashed import HashedFile

CHECKSUM_BYTES = 4


class Chunks(NamedTuple):
    """A dataset that is as it was written.

    Attributes:
        dtype: Its type; bytes of one length for text.
        shape: Of one row.
        rows: Of one chunk.
        places: Of each chunk in the file, in the order of the rows.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    rows: int
    places: tuple[int, ...]

    @property
    def chunk_bytes(self) -> int:
        """The size of one chunk, without its checksum."""
        return self.rows * self.dtype.itemsize * prod(self.shape)


class ChunkFinder:
    """Finds the chunks of the shards of one pass.

    Args:
        fields: The datasets that each shard holds, by name.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = fields
        self._known: tuple[int, int, list[tuple[int, bytes]], dict[str, Chunks]] | None = None

    def find(self, content: HashedFile, rows: int) -> dict[str, Chunks]:
        """Return where the chunks of each dataset lie; none are asked for where there is no row.

        Args:
            content: The file.
            rows: What each dataset must have.

        Raises:
            Exception: Whatever HDF5 says, or a ValueError where a dataset is not of the type,
                shape and size that it should have.
        """
        if self._known is not None:
            size, known_rows, looked_at, chunks = self._known
            if (size, known_rows) == (content.size, rows) and all(
                bytes(content.at(place, len(part))) == part for place, part in looked_at
            ):
                return chunks
        with h5py.File(content, "r") as file:
            # Of a shard without rows no one knew the types.
            chunks = _find(file, content.size, self._fields, rows) if rows else {}
        if content.looked_at is not None:
            self._known = content.size, rows, content.looked_at, chunks
        return chunks


def _find(file: h5py.File, size: int, fields: Mapping[str, Field], rows: int) -> dict[str, Chunks]:
    count = file.id.get_num_objs()
    strange = [name for name in fields if not file.id.links.exists(name.encode())]
    if strange or count != len(fields):
        what = f"{strange[0]!r} is not among them" if strange else f"there are {count}"
        raise ValueError(f"expected the datasets {', '.join(fields)}; {what}")
    found = {name: _dataset(file.id, name, field, rows) for name, field in fields.items()}
    # No filter makes anything smaller: what is declared must be there.
    declared = sum(
        rows * chunks.dtype.itemsize * int(np.prod(chunks.shape, dtype=object))
        for _, _, chunks in found.values()
    )
    if declared > size:
        raise ValueError(f"it declares {declared:,} bytes, and has {size:,}")
    return {name: _placed(*dataset, rows, size) for name, dataset in found.items()}


def _dataset(
    group: h5py.h5g.GroupID, name: str, field: Field, rows: int
) -> tuple[h5d.DatasetID, int, Chunks]:
    """Return a dataset of the group if it is what the writer makes, and nothing else.

    Returns:
        The dataset, the bytes of a chunk in the file, and its chunks without their places.
    """
    key = name.encode()
    # Links are looked at before they are followed: some lead to other files.
    if group.links.get_info(key).type != h5l.TYPE_HARD:
        raise ValueError(f"{name} is a link")
    place = h5py.h5o.open(group, key)
    if not isinstance(place, h5d.DatasetID):
        raise ValueError(f"{name} is no dataset")
    made = place.get_create_plist()
    filters = [made.get_filter(number)[0] for number in range(made.get_nfilters())]
    if made.get_layout() != h5d.CHUNKED or made.get_external_count():
        raise ValueError(f"{name} is not stored in chunks of this file")
    if filters not in ([], [h5z.FILTER_FLETCHER32]):
        raise ValueError(f"{name} passes a filter that is not used here")
    dtype = _plain_type(place.get_type())
    text = field.dtype is None and dtype is not None and dtype.kind == "S"
    if dtype is None or not (text or dtype == field.dtype):
        wanted = field.dtype or "text of a fixed length"
        raise ValueError(f"expected {name} of {wanted}, got another type")
    chunk, shape = made.get_chunk(), place.shape
    if shape != (rows, *field.shape):
        raise ValueError(f"expected {name} of shape {[rows, *field.shape]}, got {list(shape)}")
    row_bytes = dtype.itemsize * int(np.prod(field.shape, dtype=object))
    size = chunk[0] * row_bytes
    if chunk[1:] != field.shape or size > max(CHUNK_BYTES, row_bytes):
        raise ValueError(f"{name} is cut into chunks of {list(chunk)}")
    stored = size + CHECKSUM_BYTES * len(filters)
    return place, stored, Chunks(dtype, field.shape, chunk[0], ())


def _placed(place: h5d.DatasetID, stored: int, chunks: Chunks, rows: int, size: int) -> Chunks:
    """Return chunks with their places, each within the file."""
    places = []
    for begin in range(0, rows, chunks.rows):
        found = place.get_chunk_info_by_coord((begin, *(0 for _ in chunks.shape)))
        if found.byte_offset is None or found.filter_mask or found.size != stored:
            raise ValueError(f"a chunk of {stored} bytes is not there")
        if found.byte_offset + chunks.chunk_bytes > size:
            raise ValueError("a chunk lies behind its end")
        places.append(found.byte_offset)
    return chunks._replace(places=tuple(places))


def _plain_type(kind: h5t.TypeID) -> np.dtype | None:
    """Return the NumPy type of numbers, or of UTF-8 text of one length; None for any other."""
    if isinstance(kind, h5t.TypeStringID):
        plain = not kind.is_variable_str() and kind.get_cset() == h5t.CSET_UTF8
        return np.dtype(f"S{kind.get_size()}") if plain else None
    return kind.dtype if isinstance(kind, h5t.TypeIntegerID | h5t.TypeFloatID) else None
