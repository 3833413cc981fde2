"""Many texts in one piece of memory: their bytes, and eight bytes more for each.

A list of Python strings takes some sixty bytes more a string, and seconds a million to check.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 16
"""Texts that are decoded at once."""
UTF8 = {"encoding": "utf-8", "errors": "surrogateescape"}
"""Names of files may hold bytes that are no UTF-8; Python reads and writes them so."""


class Texts(Sequence[str]):
    """An unchangeable sequence of texts.

    Args:
        starts: Where each text begins among the bytes, and the end of the last, ``[n + 1]``.
        content: The bytes of all texts, one after another, UTF-8.

    Attributes:
        starts: As given.
        content: As given.
    """

    def __init__(self, starts: NDArray[np.int64], content: NDArray[np.uint8]) -> None:
        self.starts, self.content = starts, content

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Return texts held so; those that are are returned as they are."""
        if isinstance(texts, cls):
            return texts
        remaining = iter(texts)
        pieces, lengths = [], []
        while piece := [text.encode(**UTF8) for text in islice(remaining, PIECE)]:
            lengths.append(np.fromiter(map(len, piece), np.int64, len(piece)))
            pieces.append(np.frombuffer(b"".join(piece), np.uint8))
        return cls._joined(lengths, pieces)

    @classmethod
    def of_arrow(cls, arrays: Iterable[Any]) -> "Texts":
        """Return the texts of Arrow arrays of strings or bytes, none of them null."""
        import pyarrow as pa

        lengths, pieces = [], []
        for array in arrays:
            whole = array.cast(pa.large_binary())
            _, places, content = whole.buffers()
            starts = np.frombuffer(places, np.int64)[whole.offset : whole.offset + len(whole) + 1]
            bytes_ = np.frombuffer(content or b"", np.uint8)
            lengths.append(np.diff(starts))
            pieces.append(bytes_[starts[0] : starts[-1]] if len(starts) else bytes_[:0])
        return cls._joined(lengths, pieces)

    @classmethod
    def _joined(cls, lengths: Sequence[NDArray], pieces: Sequence[NDArray]) -> "Texts":
        starts = np.zeros(1 + sum(map(len, lengths)), np.int64)
        if lengths:
            np.cumsum(np.concatenate(lengths), out=starts[1:])
        content = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
        return cls(starts, content)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.starts) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "Texts": ...
    def __getitem__(self, place: Any) -> Any:
        """Return one text, or consecutive ones."""
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step != 1:
                return self.take(np.arange(start, stop, step))
            starts = self.starts[start : max(start, stop) + 1]
            return Texts(starts - starts[0], self.content[starts[0] : starts[-1]])
        if not -len(self) <= place < len(self):
            raise IndexError(f"Expected a text of 0 to {len(self) - 1}, got {place}.")
        place = int(place) % len(self)
        part = self.content[self.starts[place] : self.starts[place + 1]]
        return part.tobytes().decode(**UTF8)

    def __iter__(self) -> Iterator[str]:
        """Yield the texts in their order."""
        for start in range(0, len(self), PIECE):
            starts = self.starts[start : start + PIECE + 1]
            content = self.content[starts[0] : starts[-1]].tobytes()
            places = (starts - starts[0]).tolist()
            for low, high in pairwise(places):
                yield content[low:high].decode(**UTF8)

    def __eq__(self, other: object) -> bool:
        """Return whether another sequence holds the same texts."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None

    def __repr__(self) -> str:
        """Return how many there are, and the first."""
        return f"<{len(self):,} texts: {', '.join(map(repr, self[:3]))}>"

    def take(self, places: NDArray[np.int64]) -> "Texts":
        """Return some of the texts, in the order of their places."""
        return Texts.of(self[place] for place in places.tolist())

    def without(self, count: int) -> "Texts":
        """Return the texts without their first ``count`` bytes, of which each has as many."""
        import pyarrow.compute as pc

        return Texts.of_arrow([pc.binary_slice(self.arrow(), start=count)])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of bytes of each."""
        return np.diff(self.starts)

    def arrow(self) -> Any:
        """Return the texts as an Arrow array of bytes; nothing is copied."""
        import pyarrow as pa

        buffers = [None, pa.py_buffer(self.starts), pa.py_buffer(self.content)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self), buffers)


def some_of(texts: Sequence[str], places: NDArray[np.int64]) -> Sequence[str]:
    """Return some of the texts, in the order of their places; none of none."""
    if not len(texts):
        return texts
    if isinstance(texts, Texts):
        return texts.take(places)
    return [texts[place] for place in places.tolist()]
