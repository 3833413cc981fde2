"""The members of a .tar whose headers can be believed; links and devices are left out."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

FEW_BYTES, BYTES_A_BYTE = 1 << 28, 100
"""A compressed archive may unfold to the larger of so much, and so many times its size."""


def sound_members(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of an archive, in its order.

    Args:
        archive: Open for reading.
        path: The archive itself.

    Raises:
        ValueError: If a member is of impossible size, would lie outside of the archive, or is
            stored with holes, so that its bytes are not in one place.
        tarfile.TarError: If the archive is damaged.
    """
    size = os.path.getsize(path)
    plain = type(archive.fileobj).__name__ in ("BufferedReader", "ExFileObject")
    end = size if plain else max(FEW_BYTES, BYTES_A_BYTE * size)
    while (member := _next(archive)) is not None:
        if member.size < 0 or member.offset_data + member.size > end:
            raise ValueError(
                f"member {member.name!r} of {member.size:,} bytes does not fit into the archive's "
                f"{end:,}"
            )
        if archive.offset <= member.offset:
            raise ValueError(f"the archive turns back at member {member.name!r}")
        if not member.isfile():
            continue
        if member.issparse():
            raise ValueError(
                f"member {member.name!r} is stored with holes; pack the archive anew, no file as "
                "sparse"
            )
        yield member


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return archive.next()
    except (OSError, tarfile.TarError, ValueError):
        raise
    except Exception as error:  # a hostile header is nested, asks for memory, or is of any type
        raise ValueError(f"damaged header: {error or type(error).__name__}") from error
