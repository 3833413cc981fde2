"""One batch of images to the rows of each pass: one forward, one backward for each question."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from gradscore.errors import ModelError
from gradscore.extraction.keeping import observe_inputs
from gradscore.models.head import Head, check_logits, observe_features
from gradscore.objective import logit_gradient
from gradscore.reference import backward_norms, differentiable_parameters, vmap_norms
from gradscore.run import BASE, PassInfo

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
REFERENCES = {"reference": backward_norms, "vmap": vmap_norms}
GRADIENTS = ("rules", *REFERENCES)

Rows = dict[str, dict[str, Tensor]]


class Computer:
    """Computes the rows of a batch.

    Args:
        model: The classifier, on its device.
        head: Its last layer.
        device: Where it is.
        precision: One of :data:`PRECISIONS`; below float32 the forward runs under autocast.
        base: Whether features and logits are wanted.
        passes: The norm and keep passes wanted.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        device: torch.device,
        precision: str,
        *,
        base: bool,
        passes: Sequence[PassInfo],
    ) -> None:
        self._model, self._head, self._device = model, head, device
        self._type = PRECISIONS[precision]
        self._base = base
        self._passes = [entry for entry in passes if entry.kind == "norms"]
        self._kept = [entry for entry in passes if entry.kind == "keep"]
        wanted = {name for entry in self._passes for name in entry.parameters}
        parameters = differentiable_parameters(model)
        self._selected = {name: parameters[name] for name in parameters if name in wanted}
        self._columns = {
            entry.name: [list(self._selected).index(name) for name in entry.parameters]
            for entry in self._passes
        }

    @property
    def layout(self) -> str:
        """How a batch lies in memory: ``channels_last`` or ``channels_first``.

        A forward alone on a CPU takes 0.6 to 0.8 of the time with the channels last (a transformer
        the same); with a backward and the rules it takes 1.1 to 1.3 times as long.
        """
        forward_only = not self._passes and not self.on_cuda
        return "channels_last" if forward_only else "channels_first"

    @property
    def on_cuda(self) -> bool:
        """Whether results are copied from a GPU."""
        return self._device.type == "cuda"

    def __call__(self, images: Tensor) -> Rows:
        """Return the rows of a batch: pass name to array name to tensor ``[batch, ...]``.

        Args:
            images: Preprocessed images, shape ``[batch, channels, height, width]``, float32, on
                any device.

        Raises:
            ModelError: If the model does not return logits, or memory does not suffice.
        """
        images = images.to(self._device, non_blocking=True)
        if self.layout == "channels_last":
            images = images.contiguous(memory_format=torch.channels_last)
        observing = (
            observe_features(self._model, self._head, len(images))
            if self._base and self._head.closed_form
            else nullcontext()
        )
        try:
            with observing as observed, observe_inputs(self._model, self._kept, images) as kept:
                norms, logits = self._ask(images)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"Out of memory with {len(images)} images at once; choose a smaller --batch-size, "
                "or --batch-size auto."
            ) from error
        rows: Rows = {name: {"norms": values} for name, values in norms.items()}
        rows |= {name: {"activations": values} for name, values in kept.items()}
        if self._base:
            rows[BASE] = {"logits": logits.float()}
            if observed is not None:
                rows[BASE]["features"] = observed.features.float()
        return {
            name: {field: _to_host(values) for field, values in arrays.items()}
            for name, arrays in rows.items()
        }

    def _ask(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        if not self._passes:
            with torch.inference_mode(), self._autocast():
                return {}, check_logits(self._model(images), len(images))
        if self._passes[0].gradients == "rules":
            return self._ask_rules(images)
        return self._ask_reference(images)

    def _ask_rules(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        from gradscore.engine import record

        with self._autocast():
            recording = record(self._model, images, tuple(self._selected))
        found = {}
        questions = _by_question(self._passes)
        for number, ((target, temperature), entries) in enumerate(questions.items(), 1):
            cotangent = logit_gradient(recording.logits, temperature, target)
            orders = [entry.p for entry in entries]
            norms = recording.norms(cotangent, orders, last=number == len(questions))
            for entry, values in zip(entries, norms, strict=True):
                found[entry.name] = values[:, self._columns[entry.name]]
        for entry in self._passes:
            if not entry.rules:
                entry.rules = {name: recording.rules[name] for name in entry.parameters}
        return found, recording.logits

    def _ask_reference(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        method = self._passes[0].gradients
        found = {}
        for (target, temperature), entries in _by_question(self._passes).items():

            def objective(logits: Tensor, t: str = target, T: float = temperature) -> Tensor:
                return logit_gradient(logits, T, t)

            orders = [entry.p for entry in entries]
            with self._autocast():
                norms = REFERENCES[method](self._model, images, self._selected, objective, orders)
            for entry, values in zip(entries, norms, strict=True):
                found[entry.name] = values[:, self._columns[entry.name]]
                entry.rules = dict.fromkeys(entry.parameters, method)
        # Last, so that the features observed are those of the whole batch.
        with torch.inference_mode(), self._autocast():
            return found, check_logits(self._model(images), len(images))

    def _autocast(self) -> AbstractContextManager:
        if self._type is torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, self._type)


def _by_question(passes: Sequence[PassInfo]) -> dict[tuple[str, float], list[PassInfo]]:
    """Group passes that one backward answers: they differ in the order of the norm only."""
    questions: dict[tuple[str, float], list[PassInfo]] = {}
    for entry in passes:
        questions.setdefault((entry.target, entry.temperature), []).append(entry)
    return questions


def _to_host(values: Tensor) -> Tensor:
    """Return values in host memory; from a GPU the copy may still be under way."""
    values = values.detach()
    if values.dtype is not torch.float16:
        values = values.float()
    if values.device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)
