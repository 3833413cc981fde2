"""Whether the shards of a pass cover a set as its images and failures say."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gradscore.run.files import DamagedFile
from gradscore.run.layout import SetInfo


def range_faults(
    root: Path, entry: SetInfo, name: str, *, exactly: bool = True
) -> Iterator[DamagedFile]:
    """Yield what is wrong with the row ranges of a pass; no file is read.

    Args:
        root: The run's directory.
        entry: The set.
        name: The pass.
        exactly: Whether the failures that are known are all; while a deleted shard is made again
            those of its images are not known.
    """
    expected = 0
    failed = np.array([row.index for row in entry.failed], np.int64)
    for shard in entry.passes[name]:
        if shard.start != expected or not shard.start <= shard.stop <= entry.rows:
            yield DamagedFile(
                root / shard.file,
                f"expected images from {expected} on, got {shard.start} to {shard.stop} "
                f"of {entry.rows}",
            )
        first, last = np.searchsorted(failed, (shard.start, shard.stop))
        rows = shard.stop - shard.start - int(last - first)
        if shard.rows != rows if exactly else not 0 <= shard.rows <= shard.stop - shard.start:
            yield DamagedFile(
                root / shard.file,
                f"expected {rows} rows, got {shard.rows} in pass {name}",
            )
        expected = shard.stop
