"""How an exported file agrees with its detector, tried in onnxruntime batch by batch."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.detector.graph import DetectorGraph
from gradscore.detector.live import LiveScore
from gradscore.errors import DetectorError, reason_of

OUTPUTS = ("logits", "score", "accepted")
SIZES = (1, 7, 64)
"""Batch sizes that are tried."""
TOLERANCE = 1e-4
"""How far logits, and scores, may be apart as a part of the largest."""
ROUNDING = 10
"""Scores within so many of the largest difference may fall on either side of the threshold."""
MOST_TIED = 0.01
"""Share of images so near the threshold that rounding may decide them."""


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


def compare(
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
        part = rows_from(images, start, size)
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


def check_agreement(found: Agreement) -> None:
    """Raise where a file and its detector are further apart than rounding explains.

    Raises:
        DetectorError: If they are, or too many images are near the threshold.
    """
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


def rows_from(images: Tensor, start: int, count: int) -> Tensor:
    """Return ``count`` images from a place on, from the first again where there are too few."""
    return images[torch.arange(start, start + count) % len(images)]
