"""A run from arrays: features and logits that another program computed, and the last layer.

Such a run names no model and no images. Every method that reads features, logits and the last
layer scores it; what needs the model itself is not recorded, and cannot be.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import InvalidArgument, RunError
from gradscore.run.changes import repair
from gradscore.run.given_arrays import read_head, read_labels, read_matrix
from gradscore.run.hints import remove_command
from gradscore.run.layout import BASE, HeadInfo, RunInfo, SetInfo
from gradscore.run.names import ARRAYS, RUN_FILE, check_set_name
from gradscore.run.store import RunStore

ROWS = 4096
"""Rows of a shard."""
TOLD, REFUSED = 1e-4, 1e-2
"""Shares of a row's largest logit by which the logits may differ from features and last layer.

Half precision rounds by 5e-4, bfloat16 by 4e-3; another layer or a forgotten bias is far off.
"""


@dataclass(frozen=True)
class Imported:
    """What was brought into a run.

    Attributes:
        store: The run, open for reading.
        rows: Images of the set.
        notice: What the user should know, or empty.
    """

    store: RunStore
    rows: int
    notice: str


def import_set(
    path: str | os.PathLike,
    name: str,
    role: str | None,
    *,
    features: Any,
    logits: Any,
    head: Any = None,
    labels: Any = None,
) -> Imported:
    """Bring one set of features and logits into a run, a new one or one that was made so.

    What was deleted of the set, for being damaged, is written again.

    Args:
        path: The run's directory.
        name: Name of the set.
        role: ``id``, ``ood``, ``fit`` or None.
        features: Inputs of the last layer, ``[rows, in_features]``: an .npy, an array or a tensor.
        logits: Its outputs, ``[rows, classes]``, likewise.
        head: The last layer's ``weight [classes, in_features]`` and ``bias [classes]`` (if it has
            one): a .safetensors, or a mapping. Needed where the run is new.
        labels: Class numbers ``[rows]``, -1 where unknown; without them no image has a label.

    Returns:
        The run, and what is to be told.

    Raises:
        InvalidArgument: If an array has another shape or type, a value is not finite, or the
            logits are not those of features and last layer.
        RunError: If a file cannot be read, the run is of a model or of another last layer, or
            holds the set already from other arrays.
    """
    path, name = Path(path), check_set_name(name)
    known = RunStore(path) if os.path.lexists(path / RUN_FILE) else None
    if known is not None and known.info.model != ARRAYS:
        raise RunError(
            f"Expected a new run or one made of arrays, got {path} of the model "
            f"{known.info.model}; choose another directory."
        )
    x, f = read_matrix(features, "features"), read_matrix(logits, "logits")
    if len(x) != len(f) or not len(x):
        raise InvalidArgument(
            f"Expected features and logits of the same images, one row each, got {len(x):,} and "
            f"{len(f):,} rows."
        )
    if head is None and known is None:
        raise InvalidArgument(
            "Expected the last layer's weight and bias for a new run, got none; give "
            "`head='FILE.safetensors'`."
        )
    layer = read_head(known.head() if head is None else head, f.shape[1], x.shape[1])
    y = read_labels(labels, len(x), f.shape[1])
    info = _describe(layer)
    if known is not None and known.info.weights_sha256 != info.weights_sha256:
        raise RunError(f"Expected the last layer of the run {path}, got another.")
    notice = _check_rows(x, f, layer)
    entry = SetInfo(name, role, _source(features), _digest(x, f, y), len(x))
    if known is None:
        store = RunStore.create(path, info, layer)
    else:
        store = RunStore.open_for_writing(path)
    with store:
        repair(store, layer)
        _write(store, entry, x, f, y)
    return Imported(RunStore(path), len(x), notice)


def _write(store: RunStore, entry: SetInfo, x: NDArray, f: NDArray, y: NDArray) -> None:
    """Write what a run does not hold of a set yet."""
    there = store.sets.get(entry.name)
    if there is None:
        store.add_set(entry)
    elif (there.manifest_sha256, there.role) != (entry.manifest_sha256, entry.role):
        raise RunError(
            f"The run {store.path} holds a set {entry.name} of other arrays or of another role; "
            f"choose another name, or forget it with {remove_command(store.path, entry.name)}."
        )
    for start in range(store.sets[entry.name].done(BASE), entry.rows, ROWS):
        stop = min(start + ROWS, entry.rows)
        index = np.arange(start, stop)
        arrays = {
            "index": index,
            "path": np.array([f"{entry.name}/{k}" for k in index], dtype=object),
            "label": y[start:stop],
            "features": x[start:stop].astype(np.float32),
            "logits": f[start:stop].astype(np.float32),
        }
        store.add_shards(entry.name, {BASE: arrays}, (start, stop))


def _describe(layer: Mapping[str, NDArray]) -> RunInfo:
    classes, features = layer["weight"].shape
    digest = hashlib.sha256()
    for name in sorted(layer):
        digest.update(f"{name}{layer[name].shape}".encode() + layer[name].tobytes())
    bias = "bias" if "bias" in layer else None
    return RunInfo(
        model=ARRAYS,
        weights=None,
        weights_sha256=digest.hexdigest(),
        preprocessing={},
        precision="float32",
        classes=classes,
        features=features,
        input_shape=(features,),
        head=HeadInfo("head", ("weight",), bias, closed_form=True),
        parameters={name: array.size for name, array in layer.items()},
        groups={"last": ("weight",)},
        versions={"numpy": np.__version__},
    )


def _check_rows(x: NDArray, f: NDArray, layer: Mapping[str, NDArray]) -> str:
    """Check every row; return what is to be told of how far logits and last layer are apart."""
    weight = layer["weight"].astype(np.float64)
    bias = layer["bias"].astype(np.float64) if "bias" in layer else 0.0
    farthest, worst = 0.0, 0
    for start in range(0, len(x), ROWS):
        rows = x[start : start + ROWS], f[start : start + ROWS]
        for what, values in zip(("features", "logits"), rows, strict=True):
            with np.errstate(over="ignore"):
                bad = np.flatnonzero(~np.isfinite(values.astype(np.float32)).all(axis=1))
            if len(bad):
                raise InvalidArgument(
                    f"Expected finite {what} in float32, got others in row {start + bad[0]}."
                )
        expected = rows[0].astype(np.float64) @ weight.T + bias
        scale = np.maximum(np.abs(expected).max(axis=1), 1e-6)
        apart = np.abs(rows[1] - expected).max(axis=1) / scale
        if apart.max() > farthest:
            farthest, worst = float(apart.max()), start + int(apart.argmax())
    if farthest > REFUSED:
        raise InvalidArgument(
            f"Expected logits that are weight times features plus bias, got others: row {worst} "
            f"is off by {farthest:.1%} of its largest logit. Are features the input of exactly "
            "this layer, in the same order, and is its bias there?"
        )
    if farthest > TOLD:
        return (
            f"The logits are off by up to {farthest:.2%} from the last layer's, in row {worst}: "
            "about what half precision rounds"
        )
    return ""


def _digest(*arrays: NDArray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        for start in range(0, len(array), ROWS):
            digest.update(np.ascontiguousarray(array[start : start + ROWS]).tobytes())
    return digest.hexdigest()


def _source(features: Any) -> str:
    is_file = isinstance(features, str | os.PathLike)
    return os.path.abspath(features) if is_file else "arrays in memory"
