"""GradNorm of the last layer as a detector of pytorch-ood."""

from collections.abc import Callable
from typing import ClassVar

import torch
from pytorch_ood.api import DetectorInfo, FeaturesDetector, ModelNotSetException, Task
from torch import Tensor

from gradscore.closed_form import head_score


class GradNorm(FeaturesDetector):
    """GradNorm of the last layer, from features: no gradient, and cached as other features are.

    The same numbers as those of ``pytorch_ood.detector.GradNorm`` with a ``param_filter`` for the
    last layer's weight. As everywhere in pytorch-ood, higher means more OOD.

    Args:
        encoder: From images to features ``[batch, features]``; None where features are given.
        w: Weight of the last layer, shape ``[classes, features]``.
        b: Its bias, shape ``[classes]``, or None.
        p: Order of the norm.
        temperature: Softmax temperature.
    """

    info = DetectorInfo(tasks={Task.CLASSIFICATION})
    requires_fit = False
    hyperparameter_space: ClassVar = {"p": [0.5, 1.0, 2.0], "temperature": [0.5, 1.0, 2.0]}

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor] | None,
        w: Tensor,
        b: Tensor | None = None,
        *,
        p: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.w, self.b = w.detach(), None if b is None else b.detach()
        self.p, self.temperature = p, temperature

    def predict(self, x: Tensor) -> Tensor:
        """Return the outlier scores of images, shape ``[batch]``.

        Raises:
            ModelNotSetException: If there is no encoder.
        """
        if self.encoder is None:
            raise ModelNotSetException
        with torch.no_grad():
            return self.predict_features(self.encoder(x))

    def predict_features(self, x: Tensor) -> Tensor:
        """Return the outlier scores of features ``[batch, features]``, shape ``[batch]``."""
        how = {"p": self.p, "temperature": self.temperature}
        return -head_score(x.flatten(1), self.w, self.b, **how)

    def __repr__(self) -> str:
        """Return the settings."""
        return f"GradNorm(p={self.p:g}, temperature={self.temperature:g})"
