"""Rows that are read again and again, once they were found among many.

Fifty thousand rows of ten million are spread over every shard. To find them, all shards are read
and hashed; a choice learns and scores dozens of times.
"""

from collections.abc import Collection, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from gradscore.columns import ArrayFile

Arrays = dict[str, NDArray]


class KeptRows:
    """Rows of a set: floating numbers in a file that nothing names, the rest in memory.

    Args:
        blocks: All rows, in blocks, one or more.
        rows: How many there are.

    Attributes:
        names: Names of the arrays.

    Raises:
        NoRoom: If the disk has no room for them.
    """

    def __init__(self, blocks: Iterable[Arrays], rows: int) -> None:
        self._rows, start = rows, 0
        held: dict[str, list[NDArray]] = {}
        for arrays in blocks:
            if not start:
                floating = {name: x for name, x in arrays.items() if x.dtype.kind == "f"}
                kinds = {name: (x.dtype, x.shape[1:]) for name, x in floating.items()}
                self._file = ArrayFile(kinds, rows)
            for name, values in arrays.items():
                if name in kinds:
                    self._file.put(name, start, values)
                else:
                    held.setdefault(name, []).append(values)
            start += len(arrays["index"])
        self._held = {name: np.concatenate(parts) for name, parts in held.items()}
        self.names = (*kinds, *held)

    def blocks(self, names: Collection[str], rows: int) -> Iterator[Arrays]:
        """Yield some of the arrays, ``rows`` rows at a time."""
        for start in range(0, self._rows, rows):
            stop = min(start + rows, self._rows)
            yield {
                name: self._held[name][start:stop]
                if name in self._held
                else self._file.take(name, start, stop)
                for name in names
            }
