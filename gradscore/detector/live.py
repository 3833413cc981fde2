"""A detector's score of images, computed as that of a run: the same rows, by the same code."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscore.detector.about import head_digest, spec_of
from gradscore.detector.file import FIT, DetectorInfo
from gradscore.detector.images import FIT_SET
from gradscore.errors import DetectorError, InvalidArgument
from gradscore.extraction.classifier import Classifier
from gradscore.extraction.computing import Computer
from gradscore.extraction.resolved import head_arrays
from gradscore.layers.head import find_head
from gradscore.methods.block import Block
from gradscore.methods.memory_run import Arrays, MemoryRun, set_entry
from gradscore.models import weights_sha256
from gradscore.network import state_of
from gradscore.run import BASE, HeadInfo, PassInfo, RunInfo
from gradscore.run.layout import BLOCKS
from gradscore.selection import differentiable_parameters


class RowSource:
    """Gives the arrays that a run would record for a batch of images.

    Args:
        classifier: The classifier.
        passes: What is wanted beside features and logits.
        shape: Of one image.
    """

    def __init__(
        self, classifier: Classifier, passes: list[PassInfo], shape: tuple[int, ...]
    ) -> None:
        image = example(shape)[:1].to(classifier.device)
        self._device = classifier.device
        self._computer = Computer(classifier, image, base=True, passes=passes)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Return arrays by name, in host memory, of images ``[batch, ...]``, at least one."""
        # A detector has a precision of its own: a caller's autocast would change its scores.
        with torch.autocast(self._device.type, enabled=False):
            rows = self._computer(images)
        if self._computer.on_cuda:
            torch.cuda.synchronize()
        arrays = dict(rows.pop(BASE))
        for name, fields in rows.items():
            for field, values in fields.items():
                arrays[f"{BLOCKS}/{field}" if name == BLOCKS else name] = values
        return arrays


def example(shape: tuple[int, ...]) -> Tensor:
    """Return two images of drawn numbers, always the same, shape ``[2, *shape]``."""
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), device="cpu")


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


class LiveScore:
    """Scores of images by what a detector's file says.

    Args:
        model: The classifier, on the device where it shall run.
        info: What the file says.
        arrays: What its score learned, among the file's arrays.

    Attributes:
        model: The classifier.
        device: Where it is.
        head: Its last layer.
        preprocessing: How a picture becomes its input.
        stages: Stage to the module whose channel means are read.
        arrays: What the score learned.
        plan: How the score follows from rows.
        learned: What the score learned, as the plan takes it.

    Raises:
        DetectorError: If the model is not that of the file.
    """

    def __init__(
        self, model: nn.Module, info: DetectorInfo, arrays: Mapping[str, NDArray]
    ) -> None:
        self.device, self._info, self.model = device_of(model), info, model
        self.preprocessing, self.stages = info.preprocessing, info.stages
        self.arrays = {n.removeprefix(FIT): x for n, x in arrays.items() if n.startswith(FIT)}
        self._lock = threading.Lock()
        check_model(model, info)
        self._state = state_of(model)
        self.head = find_head(model, example(info.input_shape).to(self.device))
        run = self._run()
        spec = spec_of(info)
        self.plan = spec.definition.plan(spec, run)
        self.learned = self.plan.fit() if self.plan.fit else None
        passes = [run.info.passes[name] for name in self.plan.passes]
        classifier = Classifier(model, self.head, self.device, info.precision)
        self._rows = RowSource(classifier, passes, info.input_shape)

    def _run(self) -> MemoryRun:
        """Return what the score is planned on."""
        info, found = self._info, self.head
        head = head_arrays(self.model, found)
        if (head_digest(head) if head else "") != info.head_sha256:
            raise DetectorError(
                "Expected the last layer that the detector was calibrated with, got another."
            )
        sizes = {n: p.numel() for n, p in differentiable_parameters(self.model).items()}
        groups = {info.settings["layers"]: info.parameters} if info.parameters else {}
        passes = {}
        if info.stages:
            # Stages that the score learned of, in their order.
            details = {"modules": dict(info.stages), "channels": dict.fromkeys(info.stages, 0)}
            passes[BLOCKS] = PassInfo(BLOCKS, BLOCKS, details=details)
        fit = sum(source.images for source in info.fit)
        about = RunInfo(
            *(info.model, info.weights, info.weights_sha256, info.preprocessing, info.precision),
            classes=info.classes,
            features=head["weight"].shape[1] if head else 0,
            input_shape=info.input_shape,
            head=HeadInfo(
                found.module, found.weights, found.bias, found.closed_form, found.reason
            ),
            parameters=sizes,
            groups=groups,
            passes=passes,
            sets={FIT_SET: set_entry(FIT_SET, "fit", fit)} if info.fit else {},
        )
        return MemoryRun(about, head, learned=self.arrays)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``[batch, classes]`` float32 and scores ``[batch]`` float64, on the CPU.

        Args:
            images: At least one, preprocessed, shape ``[batch, channels, height, width]``.

        Raises:
            DetectorError: If the model has changed since.
            InvalidArgument: If a score is not finite; the message names the image.
        """
        with self._lock:  # what observes a forward belongs to one thread
            if state_of(self.model) is not self._state:
                check_model(self.model, self._info)
                self._state = state_of(self.model)
            tensors = {name: values.clone() for name, values in self._rows(images).items()}
        arrays: dict[str, Any] = {"index": np.arange(len(images)), **tensors}
        block = Block(arrays, self.plan.feature_orders, self.plan.deviations)
        scores = self.plan.score(self.learned, block).double()
        bad = ~(scores.isfinite() & tensors["logits"].isfinite().all(dim=1))
        if bad.any():
            raise InvalidArgument(
                f"Expected finite logits and scores, got others for image {int(bad.nonzero()[0])};"
                " look at that image and at the model's weights."
            )
        return tensors["logits"], scores


def check_model(model: nn.Module, info: DetectorInfo) -> None:
    """Raise unless a model has the weights that a detector was calibrated with.

    Raises:
        DetectorError: If it has others.
    """
    found = weights_sha256(model)
    if found != info.weights_sha256:
        raise DetectorError(
            f"Expected the weights that the detector was calibrated with (SHA-256 "
            f"{info.weights_sha256[:12]}...), got others ({found[:12]}...); give the model and "
            "weights of its calibration, or calibrate anew."
        )


def rows_in_memory(source: RowSource, batches: Any, shape: tuple[int, ...]) -> Arrays:
    """Return the recorded arrays of all batches, with ``index``, ``path`` and ``label``.

    Args:
        source: What computes them.
        batches: Tensors ``[batch, ...]``, or pairs of these and class numbers ``[batch]``.
        shape: Of one image.

    Raises:
        InvalidArgument: If there are no images, or they are of another shape.
    """
    parts, labels = [], []
    for batch in batches:
        images, label = batch if isinstance(batch, tuple | list) else (batch, None)
        check_shape(images, shape)
        if not len(images):
            continue
        parts.append({name: values.numpy() for name, values in source(images).items()})
        unknown = torch.full((len(images),), -1)
        labels.append(torch.as_tensor(unknown if label is None else label).long().cpu().numpy())
    if not parts:
        raise InvalidArgument("Expected at least one image, got none.")
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    count = len(arrays["logits"])
    arrays |= {"index": np.arange(count), "label": np.concatenate(labels)}
    arrays["path"] = np.array([f"image {place}" for place in range(count)], dtype=object)
    return arrays


def check_shape(images: Any, shape: tuple[int, ...]) -> None:
    """Raise unless images are a batch of the shape that a detector takes.

    Raises:
        InvalidArgument: If they are not.
    """
    there = isinstance(images, Tensor) and images.ndim == len(shape) + 1
    # Raw pixels of 0 to 255 are of the right shape, too, and some models would take them.
    if not there or tuple(images.shape[1:]) != tuple(shape) or not images.is_floating_point():
        got = f"a {type(images).__name__}"
        if isinstance(images, Tensor):
            kind = "" if images.is_floating_point() else f"{images.dtype} "
            got = f"{kind}{list(images.shape)}"
        wanted = ", ".join(map(str, shape))
        raise InvalidArgument(
            f"Expected images [batch, {wanted}], preprocessed as the detector's `preprocessing` "
            f"says, got {got}."
        )
