"""What weight files hold: read without running any code of theirs, and named where they are not.

Training frameworks put more than weights into a checkpoint: settings, optimiser states, a second
set of averaged weights. The weights alone are taken. Of everything else nothing is imported: the
objects of a pickle whose classes are not torch's own become empty mappings.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradscore.errors import WeightsError
from gradscore.files import most_unfolded
from gradscore.models.pickles import SAVE, check_pickle
from gradscore.numpy_files import open_npz

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".tar", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".npz")
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""What HuggingFace's folders hold; each may be cut into parts that an index beside it lists."""
PLAIN = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params")
"""Entries that hold a checkpoint's weights as trained, the first that is there taken."""
AVERAGED = re.compile(r"ema|average|swa", re.IGNORECASE)
"""Names of entries that hold weights averaged over the training."""
LONGEST = 80
"""Characters of a name that a message shows."""
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
        path: A file of :data:`SUFFIXES`, or a folder as HuggingFace saves a model.

    Returns:
        Named tensors by the entry's name, ``""`` where the file is nothing but one set.

    Raises:
        WeightsError: If it is missing, damaged, of another kind, or holds no named tensors.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() not in SUFFIXES:
        raise WeightsError(
            f"Expected a weight file ending in {', '.join(SUFFIXES)}, got {str(path)!r}."
        )
    if not path.is_file():
        raise WeightsError(f"No weight file at {str(path)!r}.")
    _refuse_foreign(path)
    try:
        content = _read(path)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(_refused(path, str(error))) from None
    except Exception as error:  # each reader has its own kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"Cannot read the weight file {str(path)!r}: {reason}") from error
    return _entries(content, path)


def _read_folder(path: Path) -> dict[str, dict[str, Tensor]]:
    """Return the sets of a folder's file, whole or in parts."""
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return read_entries(path / name)
        index = path / f"{name}.index.json"
        if index.is_file():
            try:
                parts = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
                inside = parts and all(Path(part).name == part != ".." for part in parts)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                parts, inside = [], False
            if not inside:
                raise WeightsError(f"Expected a weight_map of file names in {str(index)!r}.")
            entries: dict[str, dict[str, Tensor]] = {}
            for part in parts:
                if (path / part).is_dir():
                    raise WeightsError(f"Expected a weight file, got the folder {path / part}.")
                for entry, tensors in read_entries(path / part).items():
                    entries.setdefault(entry, {}).update(tensors)
            return entries
    raise WeightsError(
        f"Expected {' or '.join(FOLDER_FILES)} in the folder {str(path)!r}, found neither."
    )


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
    check_pickle(path)
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
            if (
                not (value or _CLASS.fullmatch(name))
                or name in inert
                or len(inert) == MOST_CLASSES
            ):
                raise
            inert[name] = type("Value", (_Value,), {}) if value else _mapping_for(name)


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
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in content.items():
        for inner_name, inner in ((str(name), value), *_wrapped(str(name), value)):
            if _is_set(inner):
                found[inner_name] = dict(inner)
    if found:
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


def _wrapped(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return the mappings inside an entry, such as ``model_ema.module``."""
    if not isinstance(value, Mapping):
        return []
    return [(f"{name}.{key}", inner) for key, inner in value.items() if isinstance(inner, Mapping)]


def _is_set(value: Any) -> bool:
    """Say whether a value is named tensors and nothing else, not all of them single numbers."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())
        and any(tensor.ndim for tensor in value.values())
    )


def listed(names: Any, shown: int = 8) -> str:
    """Return the first names, of each its beginning, and how many more there are."""
    names = [str(name) for name in names]
    names = [name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in names]
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
