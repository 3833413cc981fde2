"""A detector as one graph: images in, logits, score and decision out, nothing that branches.

The score is computed by the same functions as elsewhere. They are asked of tensors that a tracer
follows, in place of rows that were recorded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradscore.detector.live import LiveScore
from gradscore.layers.features import pool
from gradscore.methods.block import Block
from gradscore.outputs import named_logits
from gradscore.run.layout import BLOCKS


class DetectorGraph(nn.Module):
    """A detector whose forward can be traced.

    Args:
        live: The detector's score.
        threshold: Images with a lower score are flagged.
        takes: One of :data:`gradscore.choices.INPUTS`.
    """

    def __init__(self, live: LiveScore, threshold: float, takes: str = "normalized") -> None:
        super().__init__()
        self.model, self._live, self._takes = live.model, live, takes
        about = live.preprocessing
        shape = (1, len(about["mean"]), 1, 1)
        for name in ("mean", "std"):
            self.register_buffer(f"pixel_{name}", torch.tensor(about[name]).view(shape))
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))
        self.training = False  # the model stays in its mode

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``logits [batch, classes]``, ``score [batch]`` and ``accepted [batch]``.

        Args:
            images: ``normalized``: shape ``[batch, channels, height, width]``, float32.
                ``uint8``: shape ``[batch, height, width, channels]``.
        """
        images = self.prepared(images)
        with self._observed(images) as arrays:
            output = self.model(images)
        arrays["logits"] = named_logits(output).float()
        arrays["index"] = arrays["logits"]  # only its length means anything here
        plan = self._live.plan
        block = Block(arrays, plan.feature_orders, plan.deviations)
        score = plan.score(self._live.learned, block).double()
        return arrays["logits"], score, score >= self.threshold

    def prepared(self, images: Tensor) -> Tensor:
        """Return the model's input, shape ``[batch, channels, height, width]``, float32."""
        if self._takes == "normalized":
            return images
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 255
        return (pixels - self.pixel_mean) / self.pixel_std

    @contextmanager
    def _observed(self, images: Tensor) -> Iterator[dict[str, Any]]:
        """Collect what enters the last layer, and the means of what stages put out."""
        arrays: dict[str, Any] = {}

        def entering(module: nn.Module, args: tuple) -> None:
            arrays["features"] = args[0].flatten(1).float()

        def leaving(stage: str) -> Any:
            def keep(module: nn.Module, args: tuple, output: Any) -> None:
                first = output[0] if isinstance(output, tuple | list) else output
                arrays[f"{BLOCKS}/{stage}"] = pool(first, images)

            return keep

        handles = [
            self.model.get_submodule(name).register_forward_hook(leaving(stage))
            for stage, name in self._live.stages.items()
        ]
        if self._live.head.closed_form:
            last = self.model.get_submodule(self._live.head.module)
            handles.append(last.register_forward_pre_hook(entering))
        try:
            yield arrays
        finally:
            for handle in handles:
                handle.remove()
