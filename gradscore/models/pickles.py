"""Pickles of weight files, gone through without being read: how long it would take is bounded."""

import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import IO

from gradscore.errors import WeightsError

SAVE = "torch.save(model.state_dict(), 'weights.pth')"
MOST_OPERATIONS, DEEPEST = 5_000_000, 1000
"""A pickle's steps and how deep they nest; a tensor takes about fifty steps."""
PICKLES_BEFORE = 3
"""Pickles that stand before the weights' own in files of torch before 1.6."""


def check_pickle(path: Path) -> None:
    """Raise where the pickle of a file of torch would take for ever to read.

    Raises:
        WeightsError: If it has more than :data:`MOST_OPERATIONS`, or nests beyond
            :data:`DEEPEST`.
        pickle.UnpicklingError: If it is damaged.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # as torch tells them apart
        file.seek(0)
        if not zipped:
            for _ in range(PICKLES_BEFORE + 2):  # the names of the tensors' bytes come last
                _check_operations(file, path)
            return
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.filename.lower().endswith("data.pkl"):
                    del member.CRC  # torch may be told to write none, and compares none
                    _check_operations(io.BytesIO(archive.read(member)), path)


def _check_operations(file: IO[bytes], path: Path) -> None:
    depth = 0
    try:
        for number, (operation, _, _) in enumerate(pickletools.genops(file)):
            depth += operation.name == "MARK"
            depth -= pickletools.markobject in operation.stack_before
            if number == MOST_OPERATIONS or depth > DEEPEST:
                raise WeightsError(
                    f"Expected a pickle of at most {MOST_OPERATIONS:,} steps, nested at most "
                    f"{DEEPEST:,} deep, in {str(path)!r}; save its weights alone: {SAVE}."
                )
    except ValueError as error:
        raise pickle.UnpicklingError(str(error)) from None
