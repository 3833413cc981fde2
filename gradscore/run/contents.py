"""What each file of a run holds: the datasets of shards, the arrays of the last layer and of fits.

One table of datasets serves writing, reading and checking.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscore.choices import STORED
from gradscore.run.files import DamagedFile, damage, read_below
from gradscore.run.layout import BASE, BLOCKS, FIELDS, FitInfo, RunInfo
from gradscore.run.names import FITS, HEAD_FILE

Arrays = dict[str, NDArray]
WHOLE, SINGLE, HALF = np.dtype(np.int64), np.dtype(np.float32), np.dtype(np.float16)
FIT_ENDING = ".safetensors"
LONGEST_NAME = 200
"""Characters of a fit's name before its digest; file systems take 255 bytes."""
LARGEST_ARRAYS = 1 << 31
"""Most bytes of named arrays; a last layer of 21,843 classes and 12,288 features has half."""


def pass_field(name: str) -> str:
    """Return which dataset of a pass holds its values; a pass of blocks has several instead.

    >>> pass_field("base"), pass_field("norms-uniform-T1-p1"), pass_field("keep-layer4")
    ('logits', 'norms', 'activations')
    """
    return "logits" if name == BASE else FIELDS[name.partition("-")[0]]


def fit_file(name: str) -> str:
    """Return a fit's path below the run."""
    return f"{FITS}/{name}{FIT_ENDING}"


def shard_file(set_name: str, pass_name: str, number: int) -> str:
    """Return a shard's path below the run.

    >>> shard_file("cifar10", "base", 3)
    'cifar10/base/shard-00003.h5'
    """
    return f"{set_name}/{pass_name}/shard-{number:05d}.h5"


class Field(NamedTuple):
    """One dataset of a shard.

    Attributes:
        dtype: Its type; None for text of a fixed length, UTF-8.
        shape: The shape of one row.
    """

    dtype: np.dtype | None
    shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """The size of one row of numbers."""
        return 0 if self.dtype is None else self.dtype.itemsize * math.prod(self.shape)


def fields_of(info: RunInfo, name: str) -> Mapping[str, Field]:
    """Return the datasets that each shard of a pass holds, by name.

    Args:
        info: What the run is about.
        name: The pass, ``base`` among them.
    """
    index = {"index": Field(WHOLE)}
    logits = Field(SINGLE, (info.classes,))
    if name == BASE:
        known = index | {"path": Field(None), "label": Field(WHOLE)}
        kind = HALF if info.stored == STORED[2] else SINGLE
        features = {"features": Field(kind, (info.features,))} if info.features else {}
        return known | ({"logits": logits} if info.stored == STORED[0] else {}) | features
    entry = info.passes[name]
    if entry.kind == BLOCKS:
        channels = entry.details["channels"].items()
        return index | {block: Field(SINGLE, (count,)) for block, count in channels if count}
    values = {
        "norms": Field(SINGLE, (len(entry.parameters),)),
        "odin": Field(HALF, logits.shape) if _in_half(info) else logits,
        "mahalanobis": Field(SINGLE, (len(entry.details.get("stages", ())),)),
        "keep": Field(
            HALF if entry.details.get("dtype") == "float16" else SINGLE,
            tuple(entry.details.get("shape", ())),
        ),
    }[entry.kind]
    # An array without entries in a row is left out.
    return index | ({FIELDS[entry.kind]: values} if values.row_bytes else {})


def _in_half(info: RunInfo) -> bool:
    """Return whether perturbed logits were stored as a half-precision forward gave them."""
    return info.format == 1 and info.precision == "float16"


def logits_from(head: Arrays, features: NDArray) -> NDArray[np.float32]:
    """Return the logits that the last layer makes of features, shape ``[rows, classes]``."""
    logits = features.astype(np.float32, copy=False) @ head["weight"].T
    return logits + head["bias"] if "bias" in head else logits


def stored_arrays(arrays: Mapping[str, NDArray], stored: str) -> dict[str, NDArray]:
    """Return what is kept of the arrays of a base pass.

    Args:
        arrays: ``features``, ``logits`` and the others.
        stored: One of :data:`gradscore.choices.STORED`.
    """
    if stored == STORED[0]:
        return dict(arrays)
    kept = {name: array for name, array in arrays.items() if name != "logits"}
    if stored == STORED[2]:
        with np.errstate(over="ignore"):
            kept["features"] = kept["features"].astype(HALF)
    return kept


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
    """Return what a method learned, float64; a bank of features float32.

    Raises:
        DamagedFile: If the file cannot be read, is not the recorded one, or does not hold what
            such a fit of this run has.
        RunError: If it may not be read.
    """
    file = fit_file(fit.name)
    arrays = _read(root, file, fit.sha256)
    fits = _FITS.get(fit.method, lambda info, fit, arrays: True)
    with damage(root / file):
        types = (np.float64, np.float32) if fit.method in BANKS else (np.float64,)
        sound = all(array.dtype in types for array in arrays.values())
        sound = sound and all(np.isfinite(array).all() for array in arrays.values())
        if not sound or not fits(info, fit, arrays):
            raise DamagedFile(root / file, f"is damaged: no {fit.method} of this run is like it")
    return arrays


def _read(root: Path, file: str, sha256: str | None) -> Arrays:
    from safetensors.numpy import load

    content = read_below(root, file, LARGEST_ARRAYS)
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


def _folds(check: Callable[[RunInfo, Arrays], bool]) -> Callable[..., bool]:
    """Return what checks a fit that is learned once for each fold."""

    def are(info: RunInfo, fit: FitInfo, arrays: Arrays) -> bool:
        folds = [{} for _ in range(fit.settings["folds"])]
        for name, array in arrays.items():
            fold, _, inner = name.partition(".")
            folds[int(fold.removeprefix("fold"))][inner] = array
        return all(check(info, fold) for fold in folds)

    return are


def _have_shapes(arrays: Arrays, **shapes: tuple[int, ...]) -> bool:
    """Say whether arrays have their shapes; a number is an array of one."""
    return all(arrays[name].shape == (shape or (1,)) for name, shape in shapes.items())


def _is_bank(info: RunInfo, arrays: Arrays) -> bool:
    bank = arrays["bank"]
    return bank.ndim == 2 and bank.shape[1] == info.features and len(bank) > 0


def _is_vim(info: RunInfo, arrays: Arrays) -> bool:
    residual = arrays["residual"]
    width = residual.shape[-1]
    shapes = {"origin": (info.features,), "residual": (info.features, width), "alpha": ()}
    return _have_shapes(arrays, **shapes)


def _is_laplace(info: RunInfo, arrays: Arrays) -> bool:
    features, channels = info.features, {}
    if any(name.startswith("block") for name in arrays):
        channels = info.passes[BLOCKS].details["channels"]
    shapes = {"mean": (features,), "root": (features, features), "kept": (info.classes,)}
    for stage in channels:
        if f"{stage}.root" in arrays:
            width = int((arrays[f"{stage}.deviation"] > 0).sum())
            shapes |= dict.fromkeys((f"{stage}.mean", f"{stage}.deviation"), (channels[stage],))
            shapes[f"{stage}.root"] = (width, width)
    return _have_shapes(arrays, **shapes, **{"mean_logit": (), "features.floor": ()})


BANKS = ("knn", "nnguide")
"""Methods that keep a bank of features, each of which a row is compared with."""
_FITS = {
    "mahalanobis": _is_mahalanobis,
    "mahalanobis_stages": _is_mahalanobis_stages,
    "lee_alregib": _is_lee_alregib,
    "react": _folds(lambda info, arrays: _have_shapes(arrays, clip=(), count=())),
    "fdbd": _folds(lambda info, arrays: _have_shapes(arrays, mean=(info.features,))),
    "vim": _folds(_is_vim),
    "laplace_energy": _folds(_is_laplace),
    "laplace_energy_blocks": _folds(_is_laplace),
    **dict.fromkeys(BANKS, _folds(_is_bank)),
}
"""Whether arrays are what a method learned from this run."""


def describe_fit(
    info: RunInfo, method: str, sets: Sequence[str], settings: Mapping[str, Any]
) -> FitInfo:
    """Return the entry of a fit, whether or not it was made.

    What methods learn from sets of a run is stored beside them, so that it is learned once. The
    name says the method, the sets and a digest of everything else that the fit depends on:
    another set or setting is another fit, and both may lie side by side.

    Args:
        info: What the run is about.
        method: Who learns.
        sets: Names of the run's sets that it learns from, in the order of their parts in it.
        settings: Everything else that the result depends on; plain numbers, texts and lists.
    """
    content = {name: info.sets[name].manifest_sha256 for name in sets}
    about = json.dumps([method, list(content.items()), dict(settings)], sort_keys=True)
    digest = hashlib.sha256(about.encode()).hexdigest()[:8]
    # A method of one's own may have any name, and many sets a long one.
    stem = re.sub(r"[^A-Za-z0-9._+-]", ".", "-".join((method, *sets)))[:LONGEST_NAME]
    name = f"{stem}-{digest}"
    return FitInfo(name, method, content, dict(settings))
