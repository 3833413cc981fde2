"""One batch of images to the rows of each pass: one forward, one backward for each objective.

The logits of a set that is recorded already say whether its pictures are still the same.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradscore.capture.recording import record
from gradscore.data import ImageSet
from gradscore.engine import vmap_norms
from gradscore.errors import DataError, ModelError
from gradscore.extraction.classifier import Classifier, memory_for
from gradscore.extraction.replay import observe_inputs
from gradscore.layers.features import observe_features, observe_stages
from gradscore.network import check_eval_mode, check_independence, paused_collector
from gradscore.network.batches import memory_format, parts_of
from gradscore.objective import RecordedObjective, by_loss
from gradscore.reference import backward_norms, loss_function
from gradscore.run import BASE, PassInfo, pass_field
from gradscore.run.layout import BLOCKS
from gradscore.run.reader import RunReader
from gradscore.selection import differentiable_parameters

Rows = dict[str, dict[str, Tensor]]
Probe = Callable[[Tensor], dict[str, Tensor]]
"""From a batch of images to the values of some passes, by their names; runs its own forwards."""
TOLERANCE = {"float32": 1e-3, "tf32": 1e-2, "float16": 1e-2, "bfloat16": 5e-2}
"""How far the logits of one picture may be apart, as a part of the largest of their batch."""
BETWEEN_DEVICES = 1e-2
"""The same where a GPU computed either: its convolutions keep ten bits of a float32."""


class Computer:
    """Computes the rows of a batch.

    Args:
        classifier: The classifier.
        image: One preprocessed image, shape ``[1, channels, height, width]``, on its device.
        base: Whether features and logits are wanted.
        passes: The norm and keep passes wanted.
        probes: What computes the other passes wanted.

    Raises:
        ModelError: If a layer is in train mode, or takes its statistics from the batch.
    """

    def __init__(
        self,
        classifier: Classifier,
        image: Tensor,
        *,
        base: bool,
        passes: Sequence[PassInfo],
        probes: Sequence[Probe] = (),
    ) -> None:
        self._classifier, self._model = classifier, classifier.model
        self._base, self._probes = base, probes
        self._passes = [entry for entry in passes if entry.kind == "norms"]
        self._objectives = [
            RecordedObjective(entry.p, entry.temperature, entry.target) for entry in self._passes
        ]
        self._kept = [entry for entry in passes if entry.kind == "keep"]
        self._stages = {
            stage: module
            for entry in passes
            if entry.kind == BLOCKS
            for stage, module in entry.details["modules"].items()
        }
        wanted = {name for entry in self._passes for name in entry.parameters}
        parameters = differentiable_parameters(self._model)
        self._selected = {name: parameters[name] for name in parameters if name in wanted}
        self._columns = {
            entry.name: [list(self._selected).index(name) for name in entry.parameters]
            for entry in self._passes
        }
        # Probes go back to the images, whose gradient passes every layer.
        check_eval_mode(self._model)
        self._share = 1.0 if probes else len(self._selected) / max(1, len(parameters))
        with classifier.autocast():
            self._format = memory_format(self._model, image, self._share)

    @property
    def layout(self) -> str:
        """How a batch lies in memory: ``channels_last`` or ``channels_first``."""
        return "channels_last" if self._format is torch.channels_last else "channels_first"

    @property
    def on_cuda(self) -> bool:
        """Whether results are copied from a GPU."""
        return self._classifier.device.type == "cuda"

    def __call__(self, images: Tensor) -> Rows:
        """Return the rows of a batch: pass name to array name to tensor ``[batch, ...]``.

        Args:
            images: Preprocessed images, shape ``[batch, channels, height, width]``, float32, on
                any device.

        Raises:
            ModelError: If the model does not return logits, or memory does not suffice.
        """
        images = images.to(self._classifier.device, non_blocking=True)
        with memory_for(images):
            parts = parts_of(self._model, images, self._share)
            rows = _joined([self._base_and_norms(part) for part in parts])
            for probe in self._probes:
                rows |= {n: {pass_field(n): v.float()} for n, v in probe(images).items()}
        return {
            name: {field: _to_host(values) for field, values in arrays.items()}
            for name, arrays in rows.items()
        }

    def _base_and_norms(self, images: Tensor) -> Rows:
        head = self._classifier.head
        observing = (
            observe_features(self._model, head)
            if self._base and head.closed_form
            else nullcontext()
        )
        with (
            observing as observed,
            observe_inputs(self._model, self._kept, images) as kept,
            observe_stages(self._model, self._stages, images, detach=True) as means,
        ):
            norms, logits = self._ask(images)
        rows: Rows = {name: {"norms": values} for name, values in norms.items()}
        rows |= {name: {"activations": values} for name, values in kept.items()}
        if self._stages:
            rows[BLOCKS] = self._block_means(means)
        # Where they are recorded already, they say whether the pictures are still the same.
        rows[BASE] = {"logits": logits.float()}
        if observed is not None:
            observed.check(logits)
            rows[BASE]["features"] = observed.features.float()
        return rows

    def _block_means(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        for stage, module in self._stages.items():
            if stage not in means:
                raise ModelError(
                    f"Expected {stage} ({module}) to put out a tensor with one entry an image, "
                    "as for the first, it does not."
                )
        return {stage: means[stage].float() for stage in self._stages}

    def _ask(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        if not self._passes:
            with self._classifier.autocast():
                check_independence(self._model, images)
            with torch.inference_mode():
                return {}, self._classifier(images)
        if self._passes[0].gradients == "rules":
            return self._ask_rules(images)
        return self._ask_reference(images)

    def _ask_rules(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        with paused_collector():
            with self._classifier.autocast():
                recording = record(self._model, images, self._selected)
            norms = recording.objective_norms(self._objectives)
        found = {
            entry.name: values[:, self._columns[entry.name]]
            for entry, values in zip(self._passes, norms, strict=True)
        }
        unknown = [entry for entry in self._passes if not entry.rules]
        rules = recording.rules if unknown else {}
        for entry in unknown:
            entry.rules = {name: rules[name] for name in entry.parameters}
        return found, recording.logits

    def _ask_reference(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        method = self._passes[0].gradients
        found = {}
        for places in by_loss(self._objectives):
            entries = [self._passes[place] for place in places]
            orders = [entry.p for entry in entries]
            loss = loss_function(self._objectives[places[0]])
            with self._classifier.autocast():
                if method == "vmap":
                    norms = vmap_norms(self._model, images, self._selected, loss, orders)
                else:
                    losses = [loss] * len(images)
                    norms = backward_norms(self._model, images, self._selected, losses, orders)
            for entry, values in zip(entries, norms, strict=True):
                found[entry.name] = values[:, self._columns[entry.name]]
                entry.rules = dict.fromkeys(entry.parameters, method)
        # Last, so that the features observed are those of the whole batch.
        with torch.inference_mode():
            return found, self._classifier(images)


def _joined(parts: Sequence[Rows]) -> Rows:
    """Join the rows of consecutive parts of a batch."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return {
        name: {field: torch.cat([part[name][field] for part in parts]) for field in arrays}
        for name, arrays in first.items()
    }


def _to_host(values: Tensor) -> Tensor:
    """Return values in host memory; from a GPU the copy may still be under way."""
    values = values.detach()
    if values.dtype is not torch.float16:
        values = values.float()
    if values.device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True, device="cpu")
    return host.copy_(values, non_blocking=True)


class SamePictures:
    """Compares logits with those recorded, batch after batch.

    Without it a pass that is added later could stand beside the features of another picture.

    Args:
        store: The run.
        images: The set.
        set_name: Its name in the run.
        start: First image that is compared.
        device: Where the logits are computed.
    """

    def __init__(
        self, store: RunReader, images: ImageSet, set_name: str, start: int, device: str
    ) -> None:
        self._images, self._set = images, set_name
        self._rows = store.rows(set_name, BASE, ("logits",), start)
        first = store.sets[set_name].passes[BASE][0].settings.get("device")
        self._tolerance = TOLERANCE[store.info.precision]
        if {first, device} != {"cpu"}:
            self._tolerance = max(self._tolerance, BETWEEN_DEVICES)

    def check(self, index: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Raise unless the next images are those that were recorded.

        Args:
            index: Their places, shape ``[n]``.
            logits: What the model returns for them now, shape ``[n, classes]``.

        Raises:
            DataError: Naming the first that is another.
            RunError: If the run is damaged.
        """
        recorded = self._rows(index)
        apart = np.abs(logits - recorded).max(axis=1)
        bound = self._tolerance * np.abs(recorded).max()
        changed = np.flatnonzero(~(apart <= bound))
        if len(changed):
            row = changed[0]
            place = int(index[row])
            raise DataError(
                f"{self._images.paths[place]} (image {place} of {self._set}) is not the picture "
                f"that was recorded: its logits are {apart[row]:.3g} away from those in the run, "
                f"more than {bound:.3g}. Put that picture back, or extract to another run."
            )
