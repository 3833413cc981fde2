"""The identity of a list of images: one SHA-256 over names, labels and contents."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.data.texts import Texts

ROWS = 1 << 18
"""Rows that are put together at once."""


def rows_sha256(paths: Sequence[str], labels: NDArray, *extra: Sequence[str]) -> str:
    """Return the SHA-256 of a list itself: paths, labels and what else identifies the images.

    Args:
        paths: A name for each image.
        labels: Class numbers, shape ``[n]``.
        *extra: Contents of images, then of all together.
    """
    import pyarrow as pa

    digest = hashlib.sha256()
    for start in range(0, len(paths), ROWS):
        part = slice(start, start + ROWS)
        numbers = pa.array(np.asarray(labels[part], np.int64)).cast(pa.string())
        _update(digest, Texts.of(paths[part]).arrow(), b"\0", numbers.cast(pa.large_binary()))
    for texts in extra:
        for start in range(0, len(texts), ROWS):
            _update(digest, Texts.of(texts[start : start + ROWS]).arrow())
    return digest.hexdigest()


def _update(digest: Any, texts: Any, mark: bytes = b"", numbers: Any = None) -> None:
    """Take the lines ``text MARK number`` into a digest, each with its end."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def scalar(content: bytes) -> Any:
        return pa.scalar(content, pa.large_binary())

    if numbers is not None:
        texts = pc.binary_join_element_wise(texts, numbers, scalar(mark))
    lines = pc.binary_join_element_wise(texts, scalar(b""), scalar(b"\n"))
    _, places, content = lines.buffers()
    ends = np.frombuffer(places, np.int64)[lines.offset : lines.offset + len(lines) + 1]
    digest.update(memoryview(content)[ends[0] : ends[-1]] if len(lines) else b"")
