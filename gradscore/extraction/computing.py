"""One batch of images to the rows of each pass: one forward, one backward for each question."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from gradscore.batches import memory_format, parts_of
from gradscore.extraction.keeping import observe_inputs
from gradscore.extraction.network import Network, memory_for
from gradscore.layers.features import observe_features
from gradscore.network import check_eval_mode, check_independence
from gradscore.objective import RecordedObjective, by_loss
from gradscore.recording import record
from gradscore.reference import backward_norms, loss_function
from gradscore.run import BASE, PassInfo, pass_field
from gradscore.selection import differentiable_parameters
from gradscore.vmapped import vmap_norms

GRADIENTS = ("rules", "reference", "vmap")

Rows = dict[str, dict[str, Tensor]]
Probe = Callable[[Tensor], dict[str, Tensor]]
"""From a batch of images to the values of some passes, by their names; runs its own forwards."""


class Computer:
    """Computes the rows of a batch.

    Args:
        network: The classifier.
        image: One preprocessed image, shape ``[1, channels, height, width]``, on its device.
        base: Whether features and logits are wanted.
        passes: The norm and keep passes wanted.
        probes: What computes the other passes wanted.

    Raises:
        ModelError: If a layer is in train mode, or takes its statistics from the batch.
    """

    def __init__(
        self,
        network: Network,
        image: Tensor,
        *,
        base: bool,
        passes: Sequence[PassInfo],
        probes: Sequence[Probe] = (),
    ) -> None:
        self._network, self._model = network, network.model
        self._base, self._probes = base, probes
        self._passes = [entry for entry in passes if entry.kind == "norms"]
        self._objectives = [
            RecordedObjective(entry.p, entry.temperature, entry.target) for entry in self._passes
        ]
        self._kept = [entry for entry in passes if entry.kind == "keep"]
        wanted = {name for entry in self._passes for name in entry.parameters}
        parameters = differentiable_parameters(self._model)
        self._selected = {name: parameters[name] for name in parameters if name in wanted}
        self._columns = {
            entry.name: [list(self._selected).index(name) for name in entry.parameters]
            for entry in self._passes
        }
        # Probes go back to the images, whose gradient is a use of every layer.
        check_eval_mode(self._model)
        self._share = 1.0 if probes else len(self._selected) / max(1, len(parameters))
        with network.autocast():
            self._format = memory_format(self._model, image, self._share)

    @property
    def layout(self) -> str:
        """How a batch lies in memory: ``channels_last`` or ``channels_first``."""
        return "channels_last" if self._format is torch.channels_last else "channels_first"

    @property
    def on_cuda(self) -> bool:
        """Whether results are copied from a GPU."""
        return self._network.device.type == "cuda"

    def __call__(self, images: Tensor) -> Rows:
        """Return the rows of a batch: pass name to array name to tensor ``[batch, ...]``.

        Args:
            images: Preprocessed images, shape ``[batch, channels, height, width]``, float32, on
                any device.

        Raises:
            ModelError: If the model does not return logits, or memory does not suffice.
        """
        images = images.to(self._network.device, non_blocking=True)
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
        head = self._network.head
        observing = (
            observe_features(self._model, head)
            if self._base and head.closed_form
            else nullcontext()
        )
        with observing as observed, observe_inputs(self._model, self._kept, images) as kept:
            norms, logits = self._ask(images)
        rows: Rows = {name: {"norms": values} for name, values in norms.items()}
        rows |= {name: {"activations": values} for name, values in kept.items()}
        # Where they are recorded already, they tell whether the pictures are still the same.
        rows[BASE] = {"logits": logits.float()}
        if observed is not None:
            observed.check(logits)
            rows[BASE]["features"] = observed.features.float()
        return rows

    def _ask(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        if not self._passes:
            with self._network.autocast():
                check_independence(self._model, images)
            with torch.inference_mode():
                return {}, self._network(images)
        if self._passes[0].gradients == "rules":
            return self._ask_rules(images)
        return self._ask_reference(images)

    def _ask_rules(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        with self._network.autocast():
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
            with self._network.autocast():
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
            return found, self._network(images)


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
