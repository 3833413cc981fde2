"""Shards: HDF5 files built in memory, every dataset with a checksum on each of its chunks.

Text is stored at a fixed length, since the checksums do not cover strings of varying length.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from gradscore.run.files import DamagedFile, may_not_read
from gradscore.run.layout import Shard

CHUNK_BYTES = 1 << 19


def build_shard(arrays: Mapping[str, NDArray]) -> bytes:
    """Return a shard's bytes; equal arrays give equal bytes.

    Args:
        arrays: Arrays ``[rows, ...]`` by name. Arrays of Python strings become UTF-8. An array
            without entries in a row (a model without features) is left out.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("earliest", "v108")) as file:
        for name, array in arrays.items():
            if array.ndim > 1 and 0 in array.shape[1:]:
                continue
            if array.dtype == object:
                array = _fixed_length(array)
            row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=int))
            rows = 1 << max(0, (CHUNK_BYTES // row_bytes).bit_length() - 1)
            file.create_dataset(
                name,
                data=array,
                chunks=(max(1, min(rows, len(array))), *array.shape[1:]),
                maxshape=(None, *array.shape[1:]),
                fletcher32=True,
                track_times=False,
            )
    return buffer.getvalue()


def _fixed_length(texts: NDArray) -> NDArray:
    # Names of files may hold bytes that are no UTF-8; Python reads and writes them so.
    encoded = [str(text).encode(errors="surrogateescape") for text in texts]
    length = max(map(len, encoded), default=1) or 1
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", length))


class OpenShard:
    """A shard's datasets, checked against what ``run.json`` says of its rows."""

    def __init__(self, file: h5py.File, path: Path, shard: Shard) -> None:
        self._file = file
        self._path = path
        with _damage(path):
            self.index = file["index"][:]
        index = self.index
        ordered = len(index) == shard.rows and (np.diff(index) > 0).all()
        if not ordered or (len(index) and not shard.start <= index[0] <= index[-1] < shard.stop):
            raise DamagedFile(
                path,
                f"is damaged: expected {shard.rows} rows of the images {shard.start} to "
                f"{shard.stop}, got {len(index)} others",
            )
        for name in file:
            if len(file[name]) != shard.rows:
                raise DamagedFile(
                    path,
                    f"is damaged: expected {shard.rows} rows of {name}, got {len(file[name])}",
                )

    def fields(self) -> list[str]:
        """Return the names of the datasets."""
        return list(self._file)

    def read(self, field: str, start: int, stop: int) -> NDArray:
        """Return rows ``start`` to ``stop`` of a dataset; text as Python strings.

        Raises:
            DamagedFile: If the dataset is absent or damaged.
        """
        with _damage(self._path):
            dataset = self._file[field]
            if h5py.check_string_dtype(dataset.dtype):
                rows = dataset[start:stop]
                texts = [text.decode(errors="surrogateescape") for text in rows.tolist()]
                return np.array(texts, dtype=object)
            result = np.empty((stop - start, *dataset.shape[1:]), dataset.dtype)
            if result.size:
                dataset.read_direct(result, np.s_[start:stop])
            return result


@contextmanager
def open_shard(root: Path, shard: Shard) -> Iterator[OpenShard]:
    """Open a shard for reading.

    Raises:
        DamagedFile: If it is missing, unreadable, or its rows disagree with ``shard``.
        RunError: If it may not be read.
    """
    path = root / shard.file
    if not path.is_file():
        raise DamagedFile(path, "is missing")
    with _damage(path):
        file = h5py.File(path, "r", locking=False)
    with file:
        yield OpenShard(file, path, shard)


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise may_not_read(path) from error
    except (OSError, KeyError, RuntimeError, ValueError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedFile(path, f"is damaged: {reason}") from error
