"""One shard built: an HDF5 file with a checksum on each chunk of every dataset.

Text is stored at a fixed length, since the checksums do not cover strings of varying length.
"""

import io
from collections.abc import Mapping

import h5py
import numpy as np
from numpy.typing import NDArray

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
