"""The index of a large .tar, beside it: where each image lies, its name and its label.

To list an archive, each header in it is read: half a minute for a million of them, in every
process that opens the set. The first that may write beside the archive keeps what it found.

An index is a help, and is never taken on its word. It must be of the archive's size and time of
change, and every place in it must lie within the archive; else the archive itself is listed. And
where an image is read, its own header is, too (:func:`~gradscore.data.archives.Members.read`): no
index can give an image another's name.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.data.texts import Texts
from gradscore.errors import GradScoreError
from gradscore.files import read_regular, written_aside

ENDING = ".index"
INDEXED = 1000
"""Members from which on an archive has an index; to list fewer takes less than 50 ms."""
LARGEST = 1 << 30
FORMAT = "gradscore index of a tar, 1"
TYPES = {"places": np.int64, "names": np.uint8, "ends": np.int64, "labels": np.int32}


@dataclass(frozen=True)
class Listed:
    """What an archive holds.

    Attributes:
        places: First byte and number of bytes of each image, ``[n, 2]``.
        names: Of each image.
        labels: Of each image, as the archive says it; None where it says none.
        others: What was passed over, by kind.
        members: Number of all members.
    """

    places: NDArray[np.int64]
    names: Texts
    labels: Sequence[Any]
    others: Counter = field(default_factory=Counter)
    members: int = 0


def index_path(archive: Path) -> Path:
    """Return where the index of an archive is.

    >>> index_path(Path("train-0001.tar")).name
    'train-0001.tar.index'
    """
    return archive.with_name(archive.name + ENDING)


def state_of(archive: Path) -> tuple[int, int]:
    """Return an archive's bytes and its time of change, in nanoseconds.

    Raises:
        OSError: If it cannot be asked.
    """
    status = os.stat(archive)
    return status.st_size, status.st_mtime_ns


def read_index(archive: Path) -> Listed | None:
    """Return what the index of an archive says; None where there is none that can be believed."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = read_regular(index_path(archive), LARGEST)
        length = int.from_bytes(content[:8], "little")
        about = json.loads(content[8 : 8 + length])["__metadata__"]
        state = state_of(archive)
        if (about["format"], about["bytes"], about["changed"]) != (FORMAT, *map(str, state)):
            return None
        known = json.loads(about["labels"])
        others, members = json.loads(about["others"]), int(about["members"])
        return _sound(load(content), known, others, members, state[0])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError):
        return None


def _sound(
    arrays: dict[str, NDArray], known: Any, others: Any, members: int, size: int
) -> Listed | None:
    """Return what an index says, or None where it contradicts itself or the archive's size."""
    places, names, ends, labels = (arrays[name] for name in TYPES)
    count = len(labels)
    sound = (
        all(arrays[name].dtype == kind for name, kind in TYPES.items())
        and (places.shape, ends.shape) == ((count, 2), (count + 1,))
        and names.ndim == labels.ndim == 1
        and isinstance(known, list)
        and all(one is None or type(one) in (str, int, float) for one in known)
        and isinstance(others, dict)
        and all(type(one) is int for one in others.values())
        and (not count or 0 <= labels.min() <= labels.max() < len(known))
        and (places >= 0).all()
        and (places[:, 0] <= size - places[:, 1]).all()
        and ends[0] == 0
        and (np.diff(ends) > 0).all()
        and ends[-1] == len(names)
    )
    if not sound:
        return None
    said = [known[code] for code in labels.tolist()]
    return Listed(places, Texts(ends, names), said, Counter(others), members)


def keep_index(archive: Path, listed: Listed, state: tuple[int, int]) -> None:
    """Write the index of a large archive beside it, where that can be done.

    Args:
        archive: The archive.
        listed: What it holds.
        state: What :func:`state_of` said before it was listed; an archive that changed since has
            no index.
    """
    from safetensors.numpy import save

    if listed.members < INDEXED or state_of(archive) != state:
        return
    numbers: dict[tuple[type, Any], int] = {}
    codes = [numbers.setdefault((type(one), one), len(numbers)) for one in listed.labels]
    arrays = {
        "places": listed.places,
        "names": listed.names.content,
        "ends": listed.names.starts,
        "labels": np.array(codes, np.int32),
    }
    about = {
        "format": FORMAT,
        "bytes": str(state[0]),
        "changed": str(state[1]),
        "members": str(listed.members),
        "labels": json.dumps([label for _, label in numbers]),
        "others": json.dumps(listed.others),
    }
    # A folder that is read-only, full or of others is read all the same.
    with suppress(GradScoreError), written_aside(index_path(archive)) as file:
        file.write(save({name: np.ascontiguousarray(arrays[name]) for name in TYPES}, about))
