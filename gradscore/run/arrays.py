"""Files of named arrays (safetensors): the last layer, and what methods learned."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradscore.run.below import read_below
from gradscore.run.files import DamagedFile, damage
from gradscore.run.layout import FitInfo, RunInfo
from gradscore.run.names import HEAD_FILE, fit_file

Arrays = dict[str, NDArray]
MOST = 1 << 31
"""Most bytes of such a file; a last layer of 21,843 classes and 12,288 features has half."""


def read_head(root: Path, info: RunInfo) -> Arrays:
    """Return the last layer's ``weight [classes, features]`` and ``bias [classes]``, float32.

    Raises:
        DamagedFile: If the file cannot be read, is not the recorded one, or holds other arrays.
        RunError: If it may not be read.
    """
    arrays = _read(root, HEAD_FILE, info.head.sha256)
    shapes = {"weight": (info.classes, info.features), "bias": (info.classes,)}
    found = {name: array.shape for name, array in arrays.items()}
    if found not in (shapes, {"weight": shapes["weight"]}) or any(
        array.dtype != np.float32 for array in arrays.values()
    ):
        raise DamagedFile(root / HEAD_FILE, f"is damaged: expected {shapes}, got {found}")
    return arrays


def read_fit_file(root: Path, info: RunInfo, fit: FitInfo) -> Arrays:
    """Return what a method learned, float64.

    Raises:
        DamagedFile: If the file cannot be read, is not the recorded one, or does not hold what
            such a fit of this run has.
        RunError: If it may not be read.
    """
    file = fit_file(fit.name)
    arrays = _read(root, file, fit.sha256)
    fits = _FITS.get(fit.method, lambda info, fit, arrays: True)
    with damage(root / file):
        sound = all(array.dtype == np.float64 for array in arrays.values())
        sound = sound and all(np.isfinite(array).all() for array in arrays.values())
        if not sound or not fits(info, fit, arrays):
            raise DamagedFile(root / file, f"is damaged: no {fit.method} of this run is like it")
    return arrays


def _read(root: Path, file: str, sha256: str | None) -> Arrays:
    from safetensors.numpy import load

    content = read_below(root, file, MOST)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DamagedFile(root / file, "is damaged: its SHA-256 is not the recorded one")
    with damage(root / file):
        return load(content)


def _are_gaussians(arrays: Arrays, features: int | None = None, prefix: str = "") -> bool:
    means, precision = arrays[f"{prefix}means"], arrays[f"{prefix}precision"]
    width = means.shape[1] if features is None else features
    return means.shape == (len(means), width) and len(means) and precision.shape == (width, width)


def _is_mahalanobis(info: RunInfo, fit: FitInfo, arrays: Arrays) -> bool:
    return _are_gaussians(arrays, info.features)


def _is_mahalanobis_stages(info: RunInfo, fit: FitInfo, arrays: Arrays) -> bool:
    stages = fit.settings["stages"]
    regression = [arrays[name].shape for name in ("weight", "bias", "fpr95")]
    return regression == [(len(stages),), (1,), (len(fit.settings["magnitudes"]),)] and all(
        _are_gaussians(arrays, prefix=f"{stage}.") for stage in stages
    )


def _is_lee_alregib(info: RunInfo, fit: FitInfo, arrays: Arrays) -> bool:
    width = len(info.passes[fit.settings["pass"]].parameters)
    if not arrays["mean"].shape == arrays["scale"].shape == (width,) or len(arrays) % 2:
        return False
    for number in range((len(arrays) - 2) // 2):
        weight, bias = arrays[f"weight{number}"], arrays[f"bias{number}"]
        if weight.shape != (width, len(bias)) or bias.ndim != 1:
            return False
        width = len(bias)
    return width == 1 and len(arrays) > 2


_FITS = {
    "mahalanobis": _is_mahalanobis,
    "mahalanobis_stages": _is_mahalanobis_stages,
    "lee_alregib": _is_lee_alregib,
}
"""Whether arrays are what a method learned from this run."""
