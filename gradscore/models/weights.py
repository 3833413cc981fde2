"""Weight files: read without running any code of theirs, fitted strictly, and fingerprinted."""

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradscore.errors import WeightsError

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".tar")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".npz")
WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")
"""What ``DataParallel`` and ``torch.compile`` put before every name."""


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the named tensors of a weight file, on the CPU and in the types it holds.

    A dict wrapped in ``state_dict``, ``model`` or ``model_state_dict`` is taken out, and a prefix
    that every name bears (``module.``) is removed. Pickled code is never run.

    Args:
        path: A .safetensors, .pth, .pt, .th, .tar (weights only) or .npz file.

    Raises:
        WeightsError: If the file is missing, unreadable, of another kind, holds pickled code or
            no named tensors.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise WeightsError(
            f"Expected a weight file ending in {', '.join(SUFFIXES)}, got {str(path)!r}."
        )
    if not path.is_file():
        raise WeightsError(f"No weight file at {str(path)!r}.")
    try:
        content = _read(path)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0] if str(error) else "not a weight file"
        raise WeightsError(
            f"{str(path)!r} holds more than plain tensors, which is never loaded, or is damaged: "
            f"{reason}"
        ) from None
    except Exception as error:  # each reader has its own kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"Cannot read the weight file {str(path)!r}: {reason}") from error
    return _named_tensors(content, path)


def _read(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if suffix == ".npz":
        if not zipfile.is_zipfile(path):
            raise ValueError("not a .npz archive")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return torch.load(path, map_location="cpu", weights_only=True)


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(
            f"Expected named tensors in {str(path)!r}, got {type(content).__name__}"
            f"{' without entries' if isinstance(content, Mapping) else ''}."
        )
    strays = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if strays:
        raise WeightsError(
            f"Expected named tensors in {str(path)!r}, alone or under {', '.join(WRAPPERS)}; "
            f"no tensors are: {_listed(strays)}."
        )
    tensors = dict(content)
    for prefix in (*PREFIXES, *PREFIXES):  # they come in either order
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def fit_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy ``tensors`` into ``model``; every name and shape must agree.

    Only the step counters of batch norm (``num_batches_tracked``) may be missing, as older files
    have none and evaluation does not use them.

    Args:
        model: The model to fill, changed in place, unless anything disagrees.
        tensors: Named tensors of any floating type; values are converted to the model's.
        source: What the error calls them, such as the file's path.

    Raises:
        WeightsError: If names are missing or unexpected, or shapes differ; all are listed.
    """
    own = model.state_dict()
    missing = [
        name for name in own if name not in tensors and not name.endswith("num_batches_tracked")
    ]
    unexpected = [name for name in tensors if name not in own]
    unlike = [
        f"{name} (expected {list(own[name].shape)}, got {list(tensors[name].shape)})"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": unlike}
    faults = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in found.items() if names]
    if faults:
        raise WeightsError(f"The weights of {source} do not fit the model. {'; '.join(faults)}.")
    model.load_state_dict({**own, **tensors})


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights, whatever file, device or order they came in.

    Taken over the persistent parameters and buffers sorted by name: name, type, shape and bytes
    of each.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


def _listed(names: list[str], shown: int = 8) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(str, names[:shown])) + more
