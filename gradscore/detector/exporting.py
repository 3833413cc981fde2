"""A detector as an ONNX file that was tried before it is kept."""

import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.choices import INPUTS
from gradscore.detector.calibration import MORE_THAN_ONE_FORWARD
from gradscore.detector.file import DetectorInfo
from gradscore.detector.graph import DetectorGraph
from gradscore.detector.live import LiveScore
from gradscore.errors import DetectorError, InvalidArgument, memory_ended, reason_of
from gradscore.files import written_aside
from gradscore.methods import METHODS
from gradscore.run.layout import BLOCKS

ENDING = ".onnx"
OUTPUTS = ("logits", "score", "accepted")
TRACED = 4
"""Images of the batch that is traced."""
SIZES = (1, 7, 64)
"""Batch sizes that are tried."""
TOLERANCE = 1e-4
"""How far logits, and scores, may be apart as a part of the largest."""
ROUNDING = 10
"""Scores within so many of the largest difference may fall on either side of the threshold."""
MOST_TIED = 0.01
"""Share of images so near the threshold that rounding may decide them."""
LARGEST_BANK = 1 << 30
"""Most bytes of what a score learned: an ONNX file ends at 2 GiB."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Agreement(NamedTuple):
    """How an exported file agrees with the detector, on some images.

    Attributes:
        images: How many.
        drawn: Whether they are random numbers, as no real images were at hand.
        logits: Largest difference of a logit, as a part of the largest logit.
        score: Largest difference of a score, as a part of the largest score.
        near: Images whose score is so near the threshold that rounding may decide them.
        size: Of the file, in bytes.
        learned: Of what the score learned, in bytes.
    """

    images: int
    drawn: bool
    logits: float
    score: float
    near: int
    size: int
    learned: int


def export_onnx(
    live: LiveScore,
    info: DetectorInfo,
    path: str | os.PathLike,
    images: Tensor | None = None,
    *,
    takes: str = "normalized",
    batch: int | None = None,
) -> Agreement:
    """Write a detector as ONNX, once onnxruntime gave the same decisions.

    Args:
        live: The detector's score, with its model on a CPU.
        info: What the detector's file says.
        path: Where to; it ends in ``.onnx``.
        images: Real images to try it with: preprocessed, shape ``[n, channels, height, width]``;
            for ``uint8`` pixels, shape ``[n, height, width, channels]``. None draws numbers.
        takes: What the file takes: ``normalized`` or ``uint8``.
        batch: The one batch size that the file takes; None for any.

    Raises:
        InvalidArgument: If an argument is out of range.
        DetectorError: If a package is missing, the score needs gradients of inner layers, the
            model cannot be exported, or the file does not agree.
    """
    _check_arguments(path, takes, batch)
    _check_score(live, info)
    shown = images if images is not None else _drawn(info, takes)
    graph = DetectorGraph(live, info.threshold.value, takes)
    with torch.no_grad():
        graph(_rows(shown, 0, 2))  # what a score computes once must not be in the graph
    model = _exported(graph, shown, batch)
    learned = sum(x.nbytes for x in live.arrays.values())
    _describe(model, info, takes)
    content = model.SerializeToString()
    found = Agreement(
        len(shown),
        images is None,
        *_compared(content, live, graph, shown, batch),
        len(content),
        learned,
    )
    _check_agreement(found)
    model.metadata_props.add(key="gradscore.agreement", value=json.dumps(found._asdict()))
    with written_aside(path, DetectorError) as file:
        file.write(model.SerializeToString())
    return found


def _check_arguments(path: str | os.PathLike, takes: str, batch: int | None) -> None:
    from importlib.util import find_spec

    if Path(path).suffix.lower() != ENDING:
        raise InvalidArgument(f"Expected a file ending in {ENDING}, got {str(path)!r}.")
    if takes not in INPUTS:
        raise InvalidArgument(f"Expected an input of {' or '.join(INPUTS)}, got {takes!r}.")
    if batch is not None and batch < 1:
        raise InvalidArgument(f"Expected a batch size of 1 or more, got {batch}.")
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise DetectorError(
            f"Expected {', '.join(PACKAGES)} to export, {missing[0]} is missing; install them "
            "with `pip install '.[export]'`."
        )


def _check_score(live: LiveScore, info: DetectorInfo) -> None:
    inner = [name for name in live.plan.passes if name != BLOCKS]
    if inner:
        able = [name for name in METHODS if name not in MORE_THAN_ONE_FORWARD]
        raise DetectorError(
            "Expected a score of features, logits, last layer or block means to export, got "
            f"{info.method} of layers {info.settings.get('layers')}, which needs gradients; "
            f"choose one of {', '.join(able)} with layers last."
        )
    learned = sum(x.nbytes for x in live.arrays.values())
    if learned > LARGEST_BANK:
        raise DetectorError(
            f"Expected a score that learned at most {LARGEST_BANK >> 20:,} MiB to export, got "
            f"{learned >> 20:,} MiB of {info.method}; calibrate it with fewer images to fit to."
        )


def _drawn(info: DetectorInfo, takes: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    channels, height, width = info.input_shape
    if takes == "uint8":
        shape = (max(SIZES), height, width, channels)
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(max(SIZES), *info.input_shape, generator=generator)


def _exported(graph: DetectorGraph, images: Tensor, batch: int | None) -> Any:
    """Return the ONNX model.

    Raises:
        DetectorError: If the model cannot be exported.
    """
    example = _rows(images, 0, batch or TRACED)
    dynamic = None if batch else {"images": {0: torch.export.Dim("batch", min=1, max=1 << 20)}}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter's own parts
            program = torch.onnx.export(
                graph,
                (example,),
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=["images"],
                output_names=list(OUTPUTS),
                dynamic_shapes=dynamic,
            )
        return program.model_proto
    except Exception as error:  # of torch, onnx or the model's own code
        if memory_ended(error):
            raise
        hint = (
            ""
            if batch
            else "; a forward that calls len(x) or int(x.shape[0]) freezes the batch: "
            "use x.shape[0], or export for one size with `batch=N`"
        )
        raise DetectorError(
            f"Expected a model that torch.onnx can export, got: {_cause(error)}{hint}."
        ) from error


def _cause(error: BaseException) -> str:
    """Return the reason at the bottom of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error).rstrip(".")


def _rows(images: Tensor, start: int, count: int) -> Tensor:
    """Return ``count`` images from a place on, from the first again where there are too few."""
    return images[torch.arange(start, start + count) % len(images)]


def _describe(model: Any, info: DetectorInfo, takes: str) -> None:
    about = dataclasses.asdict(info)
    entries = {
        "gradscore": json.dumps(about, allow_nan=False),
        "gradscore.input": takes,
        "gradscore.promise": info.threshold.promise(),
        "gradscore.preprocessing": json.dumps(info.preprocessing),
    }
    for key, value in entries.items():
        model.metadata_props.add(key=key, value=value)


def _compared(
    content: bytes, live: LiveScore, graph: DetectorGraph, images: Tensor, batch: int | None
) -> tuple[float, float, int]:
    """Return how far file and detector are apart, and how many images are near the threshold.

    Raises:
        DetectorError: If the file cannot be run, or decides an image that is not near otherwise.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    except Exception as error:
        raise DetectorError(f"onnxruntime cannot read the file: {reason_of(error)}") from error
    apart, near, threshold = np.zeros(2), 0, float(graph.threshold)
    for start, size in _spans(len(images), batch):
        part = _rows(images, start, size)
        with torch.no_grad():
            logits, scores = live(graph.prepared(part))
        expected = [values.numpy() for values in (logits, scores, scores >= threshold)]
        try:
            found = session.run(list(OUTPUTS), {"images": part.numpy()})
        except Exception as error:
            raise DetectorError(
                f"The file fails at a batch of {size}: {reason_of(error)}; export for one size "
                "with `batch=N`."
            ) from error
        differences = [_apart(*pair) for pair in zip(found[:2], expected[:2], strict=True)]
        for place, difference in enumerate(differences):
            largest = np.abs(expected[place]).max() + np.finfo(np.float32).tiny
            apart[place] = max(apart[place], difference / largest)
        new = max(0, min(size, len(images) - start))  # after them the first come again
        bound = ROUNDING * differences[1]
        near += int(_near(found, expected, threshold, bound)[:new].sum())
    return float(apart[0]), float(apart[1]), near


def _spans(images: int, batch: int | None) -> Iterator[tuple[int, int]]:
    """Yield first image and number of images of batches that cover all, of several sizes."""
    sizes: Sequence[int] = (batch,) if batch else SIZES
    start, turn = 0, 0
    while start < images or turn < len(sizes):
        size = sizes[min(turn, len(sizes) - 1)]
        yield start, size
        start, turn = start + size, turn + 1


def _apart(found: NDArray, expected: NDArray) -> float:
    if found.shape != expected.shape:
        raise DetectorError(
            f"Expected outputs {list(expected.shape)} of the file, got {list(found.shape)}; "
            "export for one size with `batch=N`."
        )
    return float(np.abs(found.astype(np.float64) - expected).max())


def _near(
    found: Sequence[NDArray], expected: Sequence[NDArray], threshold: float, bound: float
) -> NDArray:
    """Return which scores are so near the threshold that rounding may decide, ``[batch]``.

    Raises:
        DetectorError: If another image is decided otherwise.
    """
    near = np.abs(expected[1] - threshold) <= bound
    if (found[2] != expected[2])[~near].any():
        raise DetectorError("The file decides images otherwise that are not near the threshold.")
    return near


def _check_agreement(found: Agreement) -> None:
    if not (found.logits <= TOLERANCE and found.score <= TOLERANCE):
        raise DetectorError(
            f"Expected a file that agrees to {TOLERANCE:g}, got logits {found.logits:.2g} and "
            f"scores {found.score:.2g} apart; the file is not kept."
        )
    if not found.drawn and found.near > max(1, MOST_TIED * found.images):
        raise DetectorError(
            f"Expected at most {100 * MOST_TIED:g}% of the images near the threshold, got "
            f"{found.near:,} of {found.images:,}: rounding would decide them; calibrate with "
            "another score."
        )
