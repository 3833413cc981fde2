"""GradNorm beside the labels that an image classification pipeline of transformers returns."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import ImageClassificationPipeline
from transformers.utils import ModelOutput

from gradscore.scorer import GradNorm


@dataclass
class ScoredOutput(ModelOutput):
    """What the model returned, and how much each image is like those that it knows.

    Attributes:
        logits: Shape ``[batch, classes]``.
        gradnorm: Shape ``[batch]``; higher means more ID.
    """

    logits: Tensor | None = None
    gradnorm: Tensor | None = None


class ScoredImageClassificationPipeline(ImageClassificationPipeline):
    """An image classification pipeline whose every answer also holds ``gradnorm``.

    Take the model and the image processor of a pipeline that you have:
    ``ScoredImageClassificationPipeline(model=pipe.model, image_processor=pipe.image_processor)``.
    Files, addresses, pictures, lists, data sets and batches are taken as by that one. ``score``
    stays the probability of the label; ``gradnorm`` is the same for all labels of an image.

    Args:
        *args: As of the pipeline.
        layers: Parameters whose gradient is scored, as of :class:`gradscore.GradNorm`.
        p: Order of the norm.
        temperature: Softmax temperature.
        **kwargs: As of the pipeline.
    """

    def __init__(
        self,
        *args: Any,
        layers: str = "last",
        p: float = 1.0,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.model.eval()
        self.scorer = GradNorm(self.model, layers=layers, p=p, temperature=temperature)

    def _forward(self, model_inputs: Any) -> ScoredOutput:
        return ScoredOutput(*self.scorer.logits_and_scores(model_inputs["pixel_values"]))

    def postprocess(self, model_outputs: Any, **how: Any) -> list[dict[str, Any]]:
        """Return the labels of one image, each with its ``score`` and the image's ``gradnorm``."""
        gradnorm = torch.as_tensor(model_outputs["gradnorm"]).item()
        labels = super().postprocess(model_outputs, **how)
        return [{**label, "gradnorm": gradnorm} for label in labels]
