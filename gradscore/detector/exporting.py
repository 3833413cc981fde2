"""A detector as an ONNX file that was tried before it is kept."""

import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradscore.choices import INPUTS
from gradscore.detector.about import MORE_THAN_ONE_FORWARD
from gradscore.detector.agreement import (
    OUTPUTS,
    SIZES,
    Agreement,
    check_agreement,
    compare,
    rows_from,
)
from gradscore.detector.file import DetectorInfo
from gradscore.detector.graph import DetectorGraph
from gradscore.detector.live import LiveScore
from gradscore.errors import DetectorError, InvalidArgument, memory_ended, reason_of
from gradscore.files import written_aside
from gradscore.methods import METHODS
from gradscore.network import check_eval_mode
from gradscore.run.layout import BLOCKS

ENDING = ".onnx"
TRACED = 4
"""Images of the batch that is traced."""
LARGEST_BANK = 1 << 30
"""Most bytes of what a score learned: an ONNX file ends at 2 GiB."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TALKATIVE = ("onnxscript", "onnx_ir", "torch.onnx", "torch.fx.experimental.symbolic_shapes")
"""Loggers that tell of steps of an export."""


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
        InvalidArgument: If an argument is out of range, or the images are others.
        ModelError: If the model is in train mode.
        DetectorError: If a package is missing, the score needs gradients of inner layers, the
            model cannot be exported, or the file does not agree.
    """
    _check_arguments(path, takes, batch)
    _check_images(images, info, takes)
    check_eval_mode(live.model)
    _check_score(live, info)
    shown = images if images is not None else _drawn(info, takes)
    graph = DetectorGraph(live, info.threshold.value, takes)
    with torch.no_grad():
        graph(rows_from(shown, 0, 2))  # what a score computes once must not be in the graph
    model = _exported(graph, shown, batch)
    learned = sum(x.nbytes for x in live.arrays.values())
    _describe(model, info, takes)
    content = model.SerializeToString()
    found = Agreement(
        len(shown),
        images is None,
        *compare(content, live, graph, shown, batch),
        len(content),
        learned,
    )
    check_agreement(found)
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


def _check_images(images: Tensor | None, info: DetectorInfo, takes: str) -> None:
    """Raise unless images are a batch of what the file takes.

    Raises:
        InvalidArgument: If they are not.
    """
    if images is None:
        return
    channels, *size = info.input_shape
    pixels = takes == "uint8"
    kind = torch.uint8 if pixels else torch.float32
    shape = (*size, channels) if pixels else info.input_shape
    there = isinstance(images, Tensor) and images.dtype == kind and len(images) > 0
    if not there or images.ndim != len(shape) + 1 or tuple(images.shape[1:]) != tuple(shape):
        given = isinstance(images, Tensor)
        got = f"{images.dtype} {list(images.shape)}" if given else f"a {type(images).__name__}"
        wanted = ", ".join(map(str, shape))
        raise InvalidArgument(
            f"Expected images {kind} [n, {wanted}] for an input of {takes}, got {got}."
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
    example = rows_from(images, 0, batch or TRACED)
    dynamic = None if batch else {"images": {0: torch.export.Dim("batch", min=1, max=1 << 20)}}
    try:
        with _quiet_exporter(), torch.no_grad():
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
        cause = _cause(error)
        raise DetectorError(
            "Expected a model and a score that torch.onnx can export, got: "
            f"{cause}{_hint(cause, batch)}."
        ) from error


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep what the exporter's own parts say among themselves from the user's terminal."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """Return the reason at the bottom of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error).rstrip(".")


def _hint(cause: str, batch: int | None) -> str:
    """Return what to do about a cause of the exporter's, or nothing where that is not known."""
    if "data-dependent" in cause:
        return "; a graph has no branch that depends on values: use torch.where"
    if ".numpy()" in cause:
        return "; a graph has operations of torch only"
    if batch:
        return ""
    return (
        "; a forward that calls len(x) or int(x.shape[0]) freezes the batch: use x.shape[0], or "
        "export for one size with `batch=N`"
    )


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
