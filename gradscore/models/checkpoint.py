"""What weight files hold: read without running any code of theirs, and named where they are not.

Training frameworks put more than weights into a checkpoint: settings, optimiser states, a second
set of averaged weights. The weights alone are taken. Of everything else nothing is imported:
objects of classes that are not torch's become empty mappings. A pickle's steps are counted first.
"""

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from gradscore.errors import WeightsError, reason_of
from gradscore.escapes import listed
from gradscore.files import most_unfolded, near_path
from gradscore.numpy_files import open_npz

SAVE = "torch.save(model.state_dict(), 'weights.pth')"
MOST_OPERATIONS, DEEPEST = 5_000_000, 1000
"""A pickle's steps and how deep they nest; a tensor takes about fifty steps."""
PICKLES_BEFORE = 3
"""Pickles that stand before the weights' own in files of torch before 1.6."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".th", ".tar", ".bin", ".ckpt", ".npz")
PLAIN = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params")
"""Entries that hold a checkpoint's weights as trained, the first that is there taken."""
AVERAGED = re.compile(r"ema|average|swa", re.IGNORECASE)
"""Names of entries that hold weights averaged over the training."""
MOST_CLASSES = 64
"""How many classes of a pickle become empty mappings before it is called something else."""

_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")
_CLASS = re.compile(r"\w+(\.\w+)*\.[A-Z_]\w*")
"""Full name of a class, by the convention that functions begin in lower case."""
_VALUES = re.compile(
    r"numpy\.(dtype|dtypes\.\w+|ndarray|(_core|core)\.multiarray\.(scalar|_reconstruct))"
    r"|_codecs\.encode|functools\.partial|datetime\.\w+"
)
"""What pickles call for values beside the weights: NumPy's numbers and arrays, such as the best
accuracy or the state of a generator, and optimisers with their settings."""
_FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch it with git lfs "
    "pull",
    b"<!doctype html": "a web page, not a weight file: the download did not succeed",
    b"<html": "a web page, not a weight file: the download did not succeed",
    b"\x89hdf": "an HDF5 file (Keras), not PyTorch weights: convert it first",
}
"""How files begin that bear a weight file's name and are something else."""


def read_entries(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return every set of named tensors that a weight file holds.

    Args:
        path: A file of :data:`SUFFIXES`.

    Returns:
        Named tensors by the entry's name, ``""`` where the file is nothing but one set.

    Raises:
        WeightsError: If it is missing, damaged, of another kind, or holds no named tensors.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise WeightsError(
            f"Expected a weight file ending in {', '.join(SUFFIXES)}, got {str(path)!r}."
        )
    if not path.is_file():
        raise WeightsError(f"No weight file at {str(path)!r}.{near_path(path)}")
    _refuse_foreign(path)
    try:
        content = _read(path)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(_refused(path, str(error))) from None
    except Exception as error:  # each reader has its own kinds for a damaged file
        said = reason_of(error)
        raise WeightsError(f"Cannot read the weight file {str(path)!r}: {said}") from error
    return _entries(content, path)


def _refuse_foreign(path: Path) -> None:
    """Refuse a file that is plainly something else, by how it begins."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if not start:
        raise WeightsError(f"{str(path)!r} is an empty file; copy or download it again.")
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise WeightsError(f"{str(path)!r} is {what}.")


def _read(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if suffix == ".npz":
        with open_npz(path) as arrays:
            return {name: torch.from_numpy(arrays.read(name)) for name in arrays.names}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unfolded = sum(member.file_size for member in archive.infolist())
            if unfolded > most_unfolded(path.stat().st_size):
                raise WeightsError(f"{str(path)!r} would unfold to {unfolded:,} bytes.")
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise WeightsError(
                    f"{str(path)!r} is a TorchScript program, which is never run; save the "
                    f"weights of the model that it was made from: {SAVE}."
                )
    return _read_torch(path)


def _read_torch(path: Path) -> Any:
    """Return what a file of torch holds, objects of unknown classes as empty mappings.

    Functions that a pickle would call stay refused: what they would make is not known.
    """
    _check_pickle(path)
    inert: dict[str, type] = {}
    while True:
        stand_ins = [(stand_in, name) for name, stand_in in inert.items()]
        try:
            with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd tensors, which are refused by name
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            refused = _REFUSED.search(str(error))
            name = refused.group(1) if refused else ""
            value = _VALUES.fullmatch(name)
            known = value or _CLASS.fullmatch(name)
            if not known or name in inert or len(inert) == MOST_CLASSES:
                raise
            inert[name] = type("Value", (_Value,), {}) if value else _mapping_for(name)


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


def _check_pickle(path: Path) -> None:
    """Raise where the pickle of a file of torch would take for ever to read.

    Raises:
        WeightsError: If it has too many steps, or nests too deep.
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


class _Value:
    """Stands for a value that is not looked at."""

    def __init__(self, *args: Any) -> None:
        """Take whatever a pickle gives."""

    def __setstate__(self, state: Any) -> None:
        """Forget it."""


def _mapping_for(name: str) -> type:
    """Return a class whose objects are mappings, which a pickle may fill with entries."""

    def make(cls: type, *args: Any, **kwargs: Any) -> OrderedDict:
        made: OrderedDict[str, Any] = OrderedDict()
        made.pickled_class = name  # type: ignore[attr-defined]
        return made

    return type("Mapping", (), {"__new__": make})


def _refused(path: Path, reason: str) -> str:
    named = _REFUSED.search(reason) or re.search(r"GLOBAL (\S+)", reason)
    held = f"{named.group(1)}, which is never loaded" if named else "more than plain tensors"
    return (
        f"{str(path)!r} holds {held}, or is damaged; where it is trusted, load it there and save "
        f"its weights alone: {SAVE}."
    )


def _entries(content: Any, path: Path) -> dict[str, dict[str, Tensor]]:
    if isinstance(content, Mapping) and (whole := getattr(content, "pickled_class", "")):
        raise WeightsError(
            f"{str(path)!r} is a whole pickled model or object ({listed([whole])}), which is "
            f"never loaded; save its weights alone where it was made: {SAVE}."
        )
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"Expected named tensors in {str(path)!r}, got {type(content).__name__}"
            f"{' without entries' if isinstance(content, Mapping) else ''}."
        )
    if _is_set(content):
        return {"": dict(content)}
    if found := {name: dict(value) for name, value in _candidates(content) if _is_set(value)}:
        return found
    for name in sorted(content, key=lambda name: name not in PLAIN):
        if whole := getattr(content[name], "pickled_class", ""):
            raise WeightsError(
                f"{str(path)!r} holds a whole pickled object under {listed([name])!r} "
                f"({listed([whole])}), which is never loaded; save its weights alone where it was "
                f"made: {SAVE}."
            )
    strays = [
        name for name, value in content.items() if not isinstance(value, Tensor | Mapping)
    ] or [f"{name!r} (no text)" for name in content if not isinstance(name, str)]
    inner = next((content[name] for name in PLAIN if isinstance(content.get(name), Mapping)), None)
    if inner is not None:
        strays = [name for name, value in inner.items() if not isinstance(value, Tensor)]
    what = f"no tensors are: {listed(strays)}"
    if not strays:
        what = f"single numbers, or entries inside of entries, are all in {listed(content)}"
    raise WeightsError(
        f"Expected named tensors in {str(path)!r}, alone or under a name such as "
        f"{', '.join(PLAIN[:3])}; {what}."
    )


def _candidates(content: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a checkpoint, and the mappings inside, such as ``model_ema.module``."""
    for name, value in content.items():
        yield str(name), value
        inside = value.items() if isinstance(value, Mapping) else ()
        yield from (
            (f"{name}.{key}", inner) for key, inner in inside if isinstance(inner, Mapping)
        )


def _is_set(value: Any) -> bool:
    """Say whether a value is named tensors and nothing else, not all of them single numbers."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
        and any(tensor.ndim for tensor in value.values())
    )
