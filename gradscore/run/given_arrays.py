"""Arrays that a user gives, in memory or in files, read and checked; nothing is unpickled."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import InvalidArgument, RunError
from gradscore.files import read_regular
from gradscore.numpy_files import load_npy
from gradscore.run.contents import LARGEST_ARRAYS


def read_matrix(source: Any, what: str) -> NDArray:
    """Return a matrix of floating-point numbers, mapped where it is a file.

    Args:
        source: An .npy, an array or a tensor.
        what: ``features`` or ``logits``.

    Raises:
        InvalidArgument: If it has another shape or type.
        RunError: If it cannot be read.
    """
    array = _array(source, what)
    if array.ndim != 2 or array.dtype.kind != "f" or not array.shape[1]:
        raise InvalidArgument(
            f"Expected {what} as floating-point numbers of the shape [rows, "
            f"{'in_features' if what == 'features' else 'classes'}], got {array.dtype} of the "
            f"shape {list(array.shape)}{_in(source)}."
        )
    if what == "logits" and array.shape[1] < 2:
        raise InvalidArgument(f"Expected logits of two classes or more, got one{_in(source)}.")
    return array


def read_labels(source: Any, rows: int, classes: int) -> NDArray[np.int64]:
    """Return a class number a row, -1 where it is unknown, or where there is no source.

    Raises:
        InvalidArgument: If there are others than ``rows`` numbers of classes.
        RunError: If they cannot be read.
    """
    if source is None:
        return np.full(rows, -1)
    array = _array(source, "labels")
    if array.shape != (rows,) or array.dtype.kind not in "iu":
        raise InvalidArgument(
            f"Expected {rows:,} labels, one whole number a row, got {array.dtype} of the shape "
            f"{list(array.shape)}{_in(source)}."
        )
    array = array.astype(np.int64)
    if array.min() < -1 or array.max() >= classes:
        row = int(np.flatnonzero((array < -1) | (array >= classes))[0])
        raise InvalidArgument(
            f"Expected class numbers of 0 to {classes - 1}, or -1 for unknown, got {array[row]} "
            f"in row {row}{_in(source)}."
        )
    return array


def read_head(source: Any, classes: int, features: int) -> dict[str, NDArray[np.float32]]:
    """Return the last layer by ``weight`` and ``bias``, found by their shapes.

    A file may call them otherwise, such as ``fc.weight``, and hold nothing else.

    Args:
        source: A .safetensors, or a mapping of arrays or tensors.
        classes: Of the logits.
        features: Of the features.

    Raises:
        InvalidArgument: If it is not the last layer of such logits and features.
        RunError: If the file cannot be read.
    """
    found = dict(source) if isinstance(source, Mapping) else _read_safetensors(source)
    arrays = {name: _array(value, name) for name, value in found.items()}
    weights = [name for name, array in arrays.items() if array.shape == (classes, features)]
    biases = [name for name, array in arrays.items() if array.shape == (classes,)]
    if len(weights) != 1 or len(weights) + len(biases) != len(arrays) or len(biases) > 1:
        shown = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise InvalidArgument(
            f"Expected the last layer as weight [{classes}, {features}] and perhaps bias "
            f"[{classes}], of these logits and features, got {shown or 'nothing'}{_in(source)}."
        )
    layer = dict(
        zip(("weight", "bias"), (arrays[name] for name in weights + biases), strict=False)
    )
    for name, array in layer.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise InvalidArgument(f"Expected finite numbers in {name} of the last layer.")
    return {name: np.ascontiguousarray(array, np.float32) for name, array in layer.items()}


def _read_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(read_regular(path, LARGEST_ARRAYS))
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror or error}.") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"Expected a .safetensors file, got {path}: {error}.") from None


def _array(source: Any, what: str) -> NDArray:
    if isinstance(source, str | os.PathLike):
        try:
            return load_npy(source, mapped=True)
        except OSError as error:
            raise RunError(f"Cannot read {source}: {error.strerror or error}.") from None
        except ValueError as error:
            raise RunError(f"Expected {what} as an .npy file, got {source}: {error}.") from None
    if hasattr(source, "detach"):  # a tensor; NumPy has no bfloat16
        source = source.detach().cpu()
        return (source.float() if source.is_floating_point() else source).numpy()
    return np.asarray(source)


def _in(source: Any) -> str:
    return f" in {source}" if isinstance(source, str | os.PathLike) else ""
