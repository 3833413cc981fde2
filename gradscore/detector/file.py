"""A detector's file: named arrays (.safetensors) with one JSON text that says what they are.

The text stands in the file's metadata, where any reader of safetensors finds it. It carries a
SHA-256 of itself and of the arrays, so that no altered byte goes unnoticed. A digest is easily
made, though: what the text says is checked against the arrays, and the threshold computed anew.
No byte of a file is ever run as code.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.choices import PRECISIONS
from gradscore.detector.threshold import Threshold
from gradscore.errors import DetectorError, InvalidArgument
from gradscore.files import read_regular, written_aside
from gradscore.strict_json import MAY_BE_ABSENT, Unexpected, parse, typed

SCHEMA = 1
"""The schema that is written, and the newest that is read."""
ENDING = ".safetensors"
ENTRY = "gradscore"
"""Name of the text in the file's metadata."""
MOST = 1 << 32
"""Most bytes of a file: a bank of 500,000 features of 2,048 channels."""
LARGEST_INPUT = 1 << 26
"""Most numbers of one input."""
MOST_TEXT = 1 << 24
"""Most bytes of the header, which holds the text: names of 200,000 classes."""
SCORES, PREDICTED, FIT = "scores", "predicted", "fit."
"""Arrays of a file: calibration scores, their predicted classes, and prefix of what was fitted."""

Arrays = dict[str, NDArray]


@dataclass(frozen=True)
class Source:
    """Where images came from.

    Attributes:
        name: Name of the set in its run, or empty.
        source: What was given as the set's path, or empty.
        manifest_sha256: Of the list of its images, or empty.
        images: How many were taken.
        rows: Their places in the list, in its order; empty where all were taken.
    """

    name: str = ""
    source: str = ""
    manifest_sha256: str = ""
    images: int = 0
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class DetectorInfo:
    """What a detector's file says.

    Attributes:
        method: The score's name.
        settings: Its options.
        threshold: What is flagged, and what that promises.
        model: Spec of the model, or the name of its class.
        weights: Its weight file, None for the library's own.
        weights_sha256: Over its named tensors.
        head_sha256: Over weight and bias of its last layer; empty where it has no linear one.
        preprocessing: How a picture becomes its input.
        precision: Type of the forward.
        input_shape: Of one input, ``[channels, height, width]``.
        classes: Number of its logits.
        class_names: Their names, where known.
        parameters: Those whose gradient is scored, where they are not the last layer's.
        stages: Stage to the module whose channel means are read, where the score reads them.
        calibration: Where the images of the threshold came from.
        fit: Where the images that the score learned from came from; empty if it learns nothing.
        cross_fit: Whether the scores were taken out of fold: the promise is then approximate.
        id_accuracy: Share of the labelled calibration images that the model classifies rightly.
        notices: What the user should know about the calibration.
        versions: Of the libraries.
        schema: Of the file.
        own: Of a score of the user's own a SHA-256 of its functions, empty where there is none;
            None for gradscore's scores.
    """

    method: str
    settings: dict[str, Any]
    threshold: Threshold
    model: str
    weights: str | None
    weights_sha256: str
    head_sha256: str
    preprocessing: dict[str, Any]
    precision: str
    input_shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...] | None = None
    parameters: tuple[str, ...] = ()
    stages: dict[str, str] = field(default_factory=dict)
    calibration: tuple[Source, ...] = ()
    fit: tuple[Source, ...] = ()
    cross_fit: bool = False
    id_accuracy: float | None = None
    notices: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA
    own: str | None = field(default=None, metadata=MAY_BE_ABSENT)


def write_detector(path: str | os.PathLike, info: DetectorInfo, arrays: Mapping[str, NDArray]):
    """Write a detector's file; equal content gives equal bytes.

    Args:
        path: Where to; it ends in ``.safetensors``.
        info: What it says.
        arrays: ``scores [n]`` ascending, ``predicted [n]`` beside them, and ``fit.*``.

    Raises:
        InvalidArgument: If the path has another ending.
        DetectorError: If it cannot be written, or what was learned holds no plain numbers.
    """
    from safetensors.numpy import save

    check_ending(path)
    try:
        _check(info, arrays)
    except Unexpected as error:
        raise DetectorError(f"Cannot write the detector {str(path)!r}: {error}.") from None
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    text = json.dumps(dataclasses.asdict(info), allow_nan=False)
    metadata = {ENTRY: text, "sha256": _digest(text, plain)}
    with written_aside(path, DetectorError) as file:
        file.write(_in_order(save(plain, metadata)))


def check_ending(path: str | os.PathLike) -> None:
    """Raise unless a path is one of a detector's file.

    Raises:
        InvalidArgument: If it has another ending.
    """
    if Path(path).suffix.lower() != ENDING:
        raise InvalidArgument(f"Expected a detector's file ending in {ENDING}, got {str(path)!r}.")


def read_detector(path: str | os.PathLike) -> tuple[DetectorInfo, Arrays]:
    """Return what a detector's file says, and its arrays.

    Raises:
        DetectorError: If it cannot be read, is damaged, no detector's, or of a newer schema.
    """
    path = Path(path)
    try:
        content = read_regular(path, MOST)
    except (OSError, ValueError) as error:  # no path holds a NUL
        reason = getattr(error, "strerror", None) or error
        raise DetectorError(
            f"Cannot read the detector {str(path)!r}: {reason}; `gradscore calibrate` makes one."
        ) from None
    try:
        text, digest = _metadata(content)
        arrays = _arrays(content)
        if _digest(text, arrays) != digest:
            raise Unexpected("its content does not agree with its SHA-256")
        info = _info(text, path)
        _check(info, arrays)
    except Unexpected as error:
        raise DetectorError(
            f"The detector {str(path)!r} is damaged or none: {error}; make it again with "
            "`gradscore calibrate`."
        ) from None
    return info, arrays


def _in_order(content: bytes) -> bytes:
    """Return a .safetensors file with the entries of its header in order, which `save` draws."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the arrays stay aligned
    return len(header).to_bytes(8, "little") + header + content[end:]


def _metadata(content: bytes) -> tuple[str, str]:
    """Return the text and the digest from the header of a .safetensors file."""
    length = int.from_bytes(content[:8], "little")
    if length > min(MOST_TEXT, len(content) - 8) or content[8:9] != b"{":
        # Some lengths begin as a pickle or an archive does, too.
        packed = content[:1] == b"\x80" or content[:2] == b"PK"
        what = "a pickle or an archive" if packed else "something else or a part of one"
        raise Unexpected(f"expected a .safetensors file, got {what}")
    try:
        header = parse(content[8 : 8 + length].decode())
    except UnicodeDecodeError:
        raise Unexpected("its header is not UTF-8") from None
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or ENTRY not in metadata:
        raise Unexpected(f"a .safetensors file without the entry {ENTRY!r} in its metadata")
    return tuple(typed(str, metadata.get(name), name) for name in (ENTRY, "sha256"))


def _arrays(content: bytes) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:  # also types of no array
        raise Unexpected(str(error).splitlines()[0]) from None


def _digest(text: str, arrays: Mapping[str, NDArray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\n{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _info(text: str, path: Path) -> DetectorInfo:
    fields = parse(text)
    schema = fields.get("schema") if isinstance(fields, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise DetectorError(
            f"Expected a detector of schema {SCHEMA}, got schema {schema} in {str(path)!r}; it "
            "was written by a newer gradscore."
        )
    return typed(DetectorInfo, fields, "")


def _check(info: DetectorInfo, arrays: Arrays) -> None:
    """Raise where a file says what no calibration could have written.

    Raises:
        Unexpected: Naming what.
    """
    for name, array in arrays.items():
        if array.dtype.kind not in "fi" or not np.isfinite(array).all():
            raise Unexpected(f"expected finite numbers in {name!r}")
    kinds = {SCORES: np.float64, PREDICTED: np.int64}
    wrong = [name for name in arrays if name not in kinds and not name.startswith(FIT)]
    for name, kind in kinds.items():
        array = arrays.get(name)
        if array is None or array.dtype != kind or array.shape != (info.threshold.images,):
            wrong.append(name)
    if wrong or info.schema != SCHEMA:
        raise Unexpected(f"expected {wrong[0] if wrong else 'schema'!r} to be another")
    for fault in _faults(info, arrays):
        raise Unexpected(fault)
    predicted, told = arrays[PREDICTED], info.threshold
    if len(predicted) and not 0 <= predicted.min() <= predicted.max() < info.classes:
        raise Unexpected(f"expected predicted classes below {info.classes}")
    if info.class_names is not None and len(info.class_names) != info.classes:
        raise Unexpected(f"expected {info.classes} class_names")
    try:
        again = Threshold.of(
            arrays[SCORES], told.tpr, guarantee=told.guarantee, confidence=told.confidence
        )
    except InvalidArgument as error:
        raise Unexpected(str(error).removesuffix(".")) from None
    if again != told or not (np.diff(arrays[SCORES]) >= 0).all():
        raise Unexpected("its threshold is not that of its scores")


def _faults(info: DetectorInfo, arrays: Arrays) -> Iterator[str]:
    """Yield what a file says of its model and score that cannot be."""
    shape = info.input_shape
    if not shape or min(shape) < 1 or math.prod(shape) > LARGEST_INPUT:
        yield f"expected the shape of an input, got {list(shape)}"
    for name in ("resize", "crop"):
        size = info.preprocessing.get(name)
        sides = size if isinstance(size, list | tuple) else [size, size]
        numbers = [side for side in sides if isinstance(side, int | float)]
        if math.prod(numbers) > LARGEST_INPUT:
            yield f"expected a {name} that gives at most {LARGEST_INPUT:,} pixels, got {size}"
    if info.id_accuracy is not None and not 0 <= info.id_accuracy <= 1:
        yield f"expected an id_accuracy of 0 to 1, got {info.id_accuracy}"
    for source in (*info.calibration, *info.fit):
        if source.images < 0 or min(source.rows, default=0) < 0:
            yield "expected places of images from 0 on"
    if info.precision not in PRECISIONS:
        yield f"expected a precision of {', '.join(PRECISIONS)}, got {info.precision!r}"
    if any(name.startswith(FIT) for name in arrays) != bool(info.fit):
        yield "expected what was learned together with the images that it was learned from"
    if info.parameters and not isinstance(info.settings.get("layers"), str):
        yield "expected layers as the name of the parameters"
