"""What the shards of each pass hold: their datasets, with types and shapes.

One table for writing down, for reading and for checking.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscore.run.layout import RunInfo
from gradscore.run.names import BASE, BLOCKS, FIELDS


class Field(NamedTuple):
    """One dataset of a shard.

    Attributes:
        dtype: Its type; None for text of a fixed length, UTF-8.
        shape: The shape of one row.
    """

    dtype: np.dtype | None
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """The size of one row of numbers."""
        return 0 if self.dtype is None else self.dtype.itemsize * math.prod(self.shape)


WHOLE, SINGLE, HALF = np.dtype(np.int64), np.dtype(np.float32), np.dtype(np.float16)


def fields_of(info: RunInfo, name: str) -> Mapping[str, Field]:
    """Return the datasets that each shard of a pass holds, by name.

    Args:
        info: What the run is about.
        name: The pass, ``base`` among them.
    """
    index = {"index": Field(WHOLE)}
    logits = Field(SINGLE, (info.classes,))
    if name == BASE:
        features = {"features": Field(SINGLE, (info.features,))} if info.features else {}
        return index | {"path": Field(None), "label": Field(WHOLE), "logits": logits} | features
    entry = info.passes[name]
    if entry.kind == BLOCKS:
        channels = entry.details["channels"].items()
        return index | {block: Field(SINGLE, (count,)) for block, count in channels if count}
    values = {
        "norms": Field(SINGLE, (len(entry.parameters),)),
        "odin": Field(HALF, logits.shape) if _in_half(info) else logits,
        "mahalanobis": Field(SINGLE, (len(entry.details.get("stages", ())),)),
        "keep": Field(
            HALF if entry.details.get("dtype") == "float16" else SINGLE,
            tuple(entry.details.get("shape", ())),
        ),
    }[entry.kind]
    # An array without entries in a row is left out.
    return index | ({FIELDS[entry.kind]: values} if values.row_bytes else {})


def _in_half(info: RunInfo) -> bool:
    """Return whether perturbed logits were stored as a half-precision forward gave them."""
    return info.format == 1 and info.precision == "float16"


def expected_index(start: int, stop: int, failed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of the images ``start`` to ``stop`` that have rows.

    Args:
        start: First image.
        stop: The one after the last.
        failed: Places of the images without rows, ascending.
    """
    first, last = np.searchsorted(failed, (start, stop))
    return np.delete(np.arange(start, stop), failed[first:last] - start)
