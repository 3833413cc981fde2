"""Weights: taken out of their file or folder, and fitted strictly."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gradscore.errors import WeightsError
from gradscore.escapes import LONGEST_NAME, listed
from gradscore.models.checkpoint import AVERAGED, PLAIN, read_entries

Renaming = Callable[[dict[str, Tensor]], dict[str, Tensor]]
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
"""What HuggingFace's folders hold; each may be cut into parts that an index beside it lists."""
DEEPEST = 16
"""Parts of a prefix that are tried; names of files may be of any length."""
MOST_PARTS = 32
"""Prefixes of a file's names that are tried where the whole does not fit."""


@dataclass(frozen=True)
class Weights:
    """Named tensors of a file.

    Attributes:
        tensors: On the CPU, in the types that the file holds.
        source: What errors call them: the file, and the entry taken.
        notices: What the user should know of the choice, in sentences.
        place: What the ``FILE#KEY`` of a prefix of their names begins with.
    """

    tensors: dict[str, Tensor]
    source: str
    notices: tuple[str, ...] = ()
    place: str = ""


def split_key(path: str | Path) -> tuple[Path, str | None]:
    """Return a weight file and the entry asked for: ``FILE#KEY``, or a file alone.

    A file whose own name holds ``#`` is that file.
    """
    text = str(path)
    file, mark, key = text.rpartition("#")
    if not mark or Path(text).exists():
        return Path(text), None
    return Path(file), key


def absolute(path: str | Path) -> str:
    """Return weights as they are named from any folder: an absolute path, its key behind it."""
    file, key = split_key(path)
    if not file.exists():
        return str(path)
    return os.path.abspath(file) + (f"#{key}" if key is not None else "")


def load_weights(path: str | Path) -> Weights:
    """Return the named tensors of a weight file.

    A checkpoint's weights as trained are taken out of their entry (``state_dict``, ``model``,
    ...); ``FILE#KEY`` takes another, or the names that begin with KEY alone. Pickled code is
    never run.

    Args:
        path: A .safetensors, .npz or PyTorch file (.pth, .pt, .th, .tar, .bin, .ckpt), a folder
            of HuggingFace, or ``FILE#KEY``.

    Raises:
        WeightsError: If the file is missing, unreadable, of another kind, or holds no named
            tensors; if it has no such entry, or several of which none is the plain one.
    """
    file, key = split_key(path)
    entries = _read_folder(file) if file.is_dir() else read_entries(file)
    if key is not None:
        if key not in entries and (below := _below(entries, key)):
            return Weights(below, f"{file}#{key}", place=f"{file}#{key}.")
        if key not in entries:
            known = listed(sorted(name or "no entries: leave out the key" for name in entries))
            raise WeightsError(f"Expected an entry of {str(file)!r}, got {key!r}; it has {known}.")
        return Weights(entries[key], f"{file}#{key}", place=f"{file}#{key}.")
    if len(entries) == 1:
        return Weights(next(iter(entries.values())), str(file), place=f"{file}#")
    chosen = next((name for name in PLAIN if name in entries), None)
    if chosen is None:
        largest = max(sorted(entries), key=lambda name: len(entries[name]))
        raise WeightsError(
            f"{str(file)!r} holds several sets of weights: {listed(sorted(entries))}; choose one "
            f"by `weights={f'{file}#{listed([largest])}'!r}`."
        )
    others = sorted(entries.keys() - {chosen})
    averaged = [name for name in others if AVERAGED.search(name)]
    kind = "averaged weights" if averaged else "other weights"
    notice = (
        f"{file.name} holds {kind} too ({listed(others)}); taken was {chosen!r}, "
        f"`weights={f'{file}#{(averaged or others)[0]}'!r}` takes another."
    )
    return Weights(entries[chosen], f"{file}#{chosen}", (notice,), f"{file}#{chosen}.")


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


def _below(entries: Mapping[str, dict[str, Tensor]], key: str) -> dict[str, Tensor]:
    """Return the tensors of an entry, or of the only one, whose names begin with ``key``."""
    for entry, tensors in entries.items():
        heads = ["", f"{entry}."] if len(entries) == 1 else [f"{entry}."]
        for head in heads:
            prefix = f"{key.removeprefix(head)}." if key.startswith(head) else ""
            found = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if prefix and name.startswith(prefix)
            }
            if found:
                return found
    return {}


def fit_weights(model: nn.Module, weights: Weights, rename: Renaming = dict) -> tuple[str, ...]:
    """Copy weights into ``model``; every name and shape must agree.

    A prefix that all names share (``module.``, ``model.``, ``backbone.``) is taken off where the
    rest then fits exactly. Only the step counters of batch norm (``num_batches_tracked``) may be
    missing, as older files have none and evaluation does not use them.

    Args:
        model: The model to fill, changed in place, unless anything disagrees.
        weights: Named tensors of any floating type; values are converted to the model's.
        rename: Turns the names of a family's files into the model's own.

    Returns:
        What the user should know of the choice, in sentences.

    Raises:
        WeightsError: If names are missing or unexpected, shapes differ, or values are none that
            a model takes as they are; all are listed.
    """
    spoilt = [f"{n} ({what})" for n, t in weights.tensors.items() if (what := _strangeness(t))]
    if spoilt:
        raise _no_fit(weights, _listed_by_kind({"of another kind": spoilt}))
    own = model.state_dict()
    fewest: tuple[int, str] | None = None
    for prefix, tensors in _without_prefixes(weights.tensors):
        tensors = rename(tensors)
        count, faults = _faults(own, tensors)
        if not count:
            model.load_state_dict({**own, **tensors})
            said = f"The prefix {listed([prefix])!r} was taken off all names of {weights.source}."
            return (*weights.notices, said) if prefix else weights.notices
        if fewest is None or count < fewest[0]:
            fewest = count, faults
    assert fewest is not None, "the names as they are were tried"
    raise _no_fit(weights, fewest[1], _fitting_part(own, weights, rename))


def _no_fit(weights: Weights, faults: str, hint: str = "") -> WeightsError:
    return WeightsError(f"The weights of {weights.source} do not fit the model. {faults}.{hint}")


def _fitting_part(own: Mapping[str, Tensor], weights: Weights, rename: Renaming) -> str:
    """Return how to take the names below a prefix alone, where these fit: a part of the file."""
    times: Counter[str] = Counter()
    for name in weights.tensors:
        parts = name.split(".")[:DEEPEST]
        times.update(".".join(parts[:deep]) for deep in range(1, len(parts)))
    fitting = []
    for prefix, count in times.most_common(MOST_PARTS) if weights.place else ():
        tensors = _below({"": weights.tensors}, prefix)
        shown = len(prefix) <= LONGEST_NAME and count >= len(own) // 2
        if shown and not _faults(own, rename(tensors))[0]:
            fitting.append(f"`weights={weights.place + prefix!r}`")
    return f" A part of it fits: {' or '.join(fitting)}." if fitting else ""


def _without_prefixes(tensors: dict[str, Tensor]) -> list[tuple[str, dict[str, Tensor]]]:
    """Return the tensors as named, and without each prefix of whole parts that all share."""
    found = [("", tensors)]
    prefix, rest = "", tensors
    while rest and len(found) <= DEEPEST:
        first = next(iter(rest)).partition(".")[0] + "."
        if not all(name.startswith(first) and name != first for name in rest):
            break
        prefix += first
        rest = {name.removeprefix(first): value for name, value in rest.items()}
        found.append((prefix, rest))
    return found


def _faults(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Return how many tensors disagree with a model's, and which."""
    missing = [
        name for name in own if name not in tensors and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in tensors if name not in own]
    unlike = [
        f"{name} (expected {list(own[name].shape)}, got {list(tensors[name].shape)})"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    whole = [
        f"{name} ({str(tensors[name].dtype).removeprefix('torch.')})"
        for name in own
        if name in tensors
        and own[name].is_floating_point()
        and not tensors[name].is_floating_point()
    ]
    found = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": unlike,
        "of another kind": whole,  # torch would drop imaginary parts without a word
    }
    return sum(map(len, found.values())), _listed_by_kind(found)


def _listed_by_kind(found: Mapping[str, list[str]]) -> str:
    return "; ".join(
        f"{len(names)} {kind}: {listed(names)}" for kind, names in found.items() if names
    )


def _strangeness(tensor: Tensor) -> str:
    """Return why a tensor is no plain array of numbers, or an empty text.

    Some have no shape to compare, and torch would take quantised steps for values.
    """
    kinds = {
        "nested": tensor.is_nested,
        "without values": tensor.is_meta,
        "quantised": tensor.is_quantized,
        "sparse": "sparse" in str(tensor.layout),
        str(tensor.layout).removeprefix("torch."): tensor.layout is not torch.strided,
        type(tensor).__name__: type(tensor) not in (Tensor, nn.Parameter),
    }
    return next((kind for kind, found in kinds.items() if found), "")
