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


class _Stack:
    """The sizes of what a pickle makes: a tuple counts anew wherever it is held once more.

    As a key it is hashed so often: forty pairs of the pair before take for ever. All else has
    size 1.
    """

    def __init__(self) -> None:
        self.marks: list[int] = []
        self._sizes: list[int] = []
        self._memo: dict[int, int] = {}

    def after(self, operation: pickletools.OpcodeInfo, argument: object) -> int:
        """Take a step, and return the size of what it leaves on top."""
        name, taken, held = operation.name, operation.stack_before, 0
        if pickletools.markobject in taken:
            held = self._take(self.marks.pop())
            taken = taken[: taken.index(pickletools.markobject)]
        held += self._take(max(len(self._sizes) - len(taken), 0))
        if name == "MARK":
            self.marks.append(len(self._sizes))
        elif name.endswith("PUT"):
            self._memo[argument] = self._sizes[-1]
        else:
            size = 1 + held if name.startswith("TUPLE") else 1
            size = self._memo.get(argument, 1) if name.endswith("GET") else size
            self._sizes += [size] * len(operation.stack_after)
        return self._sizes[-1] if self._sizes else 0

    def _take(self, place: int) -> int:
        held = sum(self._sizes[place:])
        del self._sizes[place:]
        return held


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
    stack = _Stack()
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
            size = stack.after(operation, argument)
            if max(number, size) >= MOST_OPERATIONS or len(stack.marks) > DEEPEST:
                raise WeightsError(
                    f"Expected a pickle of at most {MOST_OPERATIONS:,} steps, nested at most "
                    f"{DEEPEST:,} deep, in {str(path)!r}; save its weights alone: {SAVE}."
                )
    except (ValueError, IndexError) as error:
        raise pickle.UnpicklingError(str(error)) from None
