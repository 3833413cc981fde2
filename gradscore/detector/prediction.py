"""New images through a detector: a decision each, and what they say together."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradscore.data import ImageSet, batch_spans, decoding_processes, load_batches
from gradscore.detector.detector import Detector
from gradscore.detector.file import DetectorInfo
from gradscore.detector.live import device_of
from gradscore.detector.threshold import DRIFT, Threshold, drift_p_value, share_interval
from gradscore.errors import DataError
from gradscore.extraction.classifier import float32_products, memory_for


class Predictions(NamedTuple):
    """What a detector says of consecutive images of a set.

    Attributes:
        path: Where each came from.
        predicted: First largest logit, shape ``[n]``, int64.
        score: Shape ``[n]``, float64; higher means more ID.
        p_value: Share of clean images with so low a score, shape ``[n]``, float64.
        accepted: Shape ``[n]``, bool.
        failed: Why each image that could not be read has no decision.
        done: How many images these are, failed ones among them.
    """

    path: list[str]
    predicted: NDArray[np.int64]
    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    failed: list[str]
    done: int

    def __len__(self) -> int:
        """Return the number of decisions."""
        return len(self.path)


def predict_images(
    detector: Detector,
    images: ImageSet,
    *,
    batch_size: int = 64,
    workers: int = 0,
    skip: bool = False,
) -> Iterator[Predictions]:
    """Yield the decisions on a set of images, batch by batch; memory does not grow with it.

    Args:
        detector: The detector, on its device.
        images: The set; its pictures are made ready as those of the calibration were.
        batch_size: Images at once.
        workers: Processes that decode; 0 decodes in this one.
        skip: Whether images that cannot be read are left out instead of ending the work.

    Raises:
        DataError: If an image cannot be read, and none are skipped.
        ModelError: If memory does not suffice, or the model cannot be asked.
    """
    info = detector.info
    device = device_of(detector.model)
    loader = load_batches(
        images,
        detector.preprocessing,
        batch_spans(0, len(images), batch_size),
        shape=tuple(info.input_shape),
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    with float32_products(info.precision), decoding_processes():
        for batch in loader:
            if batch.failed and not skip:
                raise DataError(
                    f"{batch.failed[0][1]} Leave such images out with `on_error='skip'`."
                )
            tensors = batch.images.to(device)
            with memory_for(tensors):
                logits, score, p_value, accepted = (v.cpu().numpy() for v in detector(tensors))
            yield Predictions(
                [images.paths[place] for place in batch.index.tolist()],
                logits.argmax(axis=1),
                *(score, p_value, accepted),
                [reason for _, reason in batch.failed],
                batch.span[1] - batch.span[0],
            )


@dataclass
class Tally:
    """What the decisions on some images say together.

    Attributes:
        info: The detector.
        kept: How many of the images with the lowest scores are kept.
        images: How many images have a decision.
        flagged: How many of them are flagged.
        failed: Why each of the first images that could not be read has none.
        unread: How many could not be read.
    """

    info: DetectorInfo
    kept: int = 0
    images: int = 0
    flagged: int = 0
    failed: list[str] = field(default_factory=list)
    unread: int = 0
    _lowest: list[tuple[float, int, tuple]] = field(default_factory=list)

    def add(self, found: Predictions) -> None:
        """Count some images."""
        # Of equal scores the first images are kept.
        for place in np.argsort(found.score, kind="stable")[: self.kept].tolist():
            row = tuple(values[place] for values in found[:5])
            entry = (-float(found.score[place]), -(self.images + place), row)
            if len(self._lowest) < self.kept:
                heapq.heappush(self._lowest, entry)
            else:
                heapq.heappushpop(self._lowest, entry)
        self.images += len(found)
        self.flagged += int((~found.accepted).sum())
        self.unread += len(found.failed)
        self.failed += found.failed[: max(0, self.kept - len(self.failed))]

    @property
    def lowest(self) -> Sequence[tuple]:
        """Path, predicted class, score, p-value and acceptance of the lowest scores, in order."""
        return [row for _, _, row in sorted(self._lowest, reverse=True)]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the share that is flagged of images like these."""
        return share_interval(self.flagged, self.images)

    @property
    def drift_p_value(self) -> float | None:
        """How probable it is that as many clean images flag as many; None where nobody knows.

        Of a cross-fitted detector the share that it flags of clean images is not known so well.
        """
        threshold: Threshold = self.info.threshold
        if self.info.cross_fit or not self.images:
            return None
        return drift_p_value(self.flagged, self.images, threshold)

    @property
    def drifted(self) -> bool | None:
        """Whether more images are flagged than clean ones would be; None where nobody knows."""
        p_value = self.drift_p_value
        return None if p_value is None else p_value < DRIFT

    def summary(self) -> str:
        """Return how many are flagged, in a sentence."""
        low, high = self.interval
        return (
            f"Flagged {self.flagged:,} of {self.images:,} images "
            f"({self.flagged / self.images:.1%}; 95% interval {low:.1%} to {high:.1%})."
        )

    def verdict(self) -> str:
        """Return whether that is more than clean images would give, in a sentence."""
        p_value = self.drift_p_value
        if p_value is None:
            return "Whether that is too many is not known: the detector was cross-fitted."
        told = f"p = {p_value:.2g}" if p_value >= 1e-6 else "p < 1e-6"
        if p_value < DRIFT:
            return (
                f"That is more than {self.images:,} images like those of the calibration would "
                f"give ({told}): these images have drifted."
            )
        return f"{self.images:,} images like those of the calibration could give so many ({told})."
